"""A model's files, known by their SHA-256: what is loaded is what was hashed, whatever they become."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from app.errors import ModelFault

DECLARATION_FILE = "framebox.toml"
MOST_FILES = 1000  # in a model's folder


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: a file with perhaps a declaration beside it, or a folder."""

    root: Path  # the administrator's folder; nothing outside it is read
    path: Path

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @property
    def folder(self) -> Path:
        """Where the names of the model's files begin."""
        return self.path if self.is_folder else self.path.parent

    @property
    def declaration(self) -> str:
        """The declaration's name; the file may be absent."""
        return DECLARATION_FILE if self.is_folder else self.path.with_suffix(".toml").name


@dataclass(frozen=True, slots=True)
class ModelContent:
    """What a model consisted of when it was hashed. Its files are read again only to find the same bytes."""

    name: str
    files: ModelFiles
    digests: Mapping[str, str]  # every file's name under `files.folder`, with slashes, and its SHA-256

    def read(self, file: str) -> bytes:
        """Return a file's bytes. Raises ModelFault if they are not those that were hashed."""
        try:
            content = (self.files.folder / file).read_bytes()
        except OSError as error:
            raise ModelFault(f"A file of model {self.name!r} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(content).hexdigest() != self.digests[file]:
            raise changed_fault(self.name)
        return content

    def named(self, suffix: str) -> list[str]:
        """Return the files with that suffix that lie in the folder itself."""
        return [file for file in self.digests if file.endswith(suffix) and "/" not in file]

    def declared(self) -> dict[str, object]:
        """Return what the administrator wrote of the model. Raises ModelFault for what is not valid TOML."""
        if self.files.declaration not in self.digests:
            return {}
        try:
            return tomllib.loads(self.read(self.files.declaration).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelFault(f"The declaration of model {self.name!r} is not valid TOML: {error}.") from error

    def fingerprint(self, revision: int) -> str:
        """Return the SHA-256 of all files' hashes and, in a folder, of their names, and of `revision`.

        A single file's name does not count: the same file under two names is the same model.
        """
        lines = [f"revision {revision}"]
        for file, digest in sorted(self.digests.items()):
            role = "declaration" if file == self.files.declaration else "network"
            lines.append(f"{digest}  {file if self.files.is_folder else role}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_model(name: str, files: ModelFiles) -> ModelContent:
    """Return the hashes of a model's files. Raises ModelFault for what cannot be read or lies elsewhere."""
    digests = {}
    try:
        for path in _paths(name, files):
            if not path.resolve().is_relative_to(files.root.resolve()):
                raise ModelFault(f"Model {name!r} has a link that leads out of the folder of models.")
            with path.open("rb") as file:
                digests[path.relative_to(files.folder).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    except OSError as error:
        raise ModelFault(f"A file of model {name!r} cannot be read: {error.strerror}.") from error
    return ModelContent(name, files, MappingProxyType(digests))


def _paths(name: str, files: ModelFiles) -> Iterator[Path]:
    if not files.is_folder:
        yield files.path
        declaration = files.folder / files.declaration
        if declaration.is_file():
            yield declaration
        return
    found = [path for path in sorted(files.path.rglob("*")) if path.is_file() and _counts(path, files.path)]
    if len(found) > MOST_FILES:
        raise ModelFault(f"Model {name!r} has {len(found)} files; at most {MOST_FILES} are taken.")
    yield from found


def _counts(path: Path, folder: Path) -> bool:
    """Whether a file is a part of the model: neither hidden nor Python's own cache, which is never read."""
    parts = path.relative_to(folder).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts)


def changed_fault(name: str) -> ModelFault:
    return ModelFault(
        f"Model {name!r} changed while it was loaded; it will be another model when it is done."
    )
