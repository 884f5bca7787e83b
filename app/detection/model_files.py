"""A model's files, identified by their SHA-256: only the bytes that were hashed are loaded.

The administrator may keep a list of the files that may be loaded, as ``sha256sum`` writes it:

    cd models && find . -type f -exec sha256sum {} + > ../models.sha256

A model is then loaded only if each of its files is listed with its hash. The list should lie where those who
can write into the folder of models cannot.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import orjson

from app.errors import ModelFault

DECLARATION_FILE = "framebox.toml"
MOST_FILES = 1000  # in a model's folder

_LISTED = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


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
        """The folder to which the names of the model's files are relative."""
        return self.path if self.is_folder else self.path.parent

    @property
    def declaration(self) -> str:
        """The declaration's name; the file may be absent."""
        return DECLARATION_FILE if self.is_folder else self.path.with_suffix(".toml").name


@dataclass(frozen=True, slots=True)
class ModelContent:
    """A model's files as they were hashed. A file that has changed since is not read."""

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
        """Return the administrator's declaration, or {}. Raises ModelFault if it is not valid TOML."""
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


def json_object(what: str, text: str | bytes) -> dict[str, Any]:
    """Parse the JSON object of a model. Raises ModelFault, naming it as `what`, if it is not one."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ModelFault(f"{what} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise ModelFault(f"{what} is not a JSON object.")
    return value


def changed_fault(name: str) -> ModelFault:
    return ModelFault(
        f"Model {name!r} changed while it was loaded. "
        "Once its files no longer change, it is loaded as another model."
    )


def hash_model(name: str, files: ModelFiles) -> ModelContent:
    """Hash a model's files. Raises ModelFault for one that cannot be read or lies outside the root."""
    digests = {}
    try:
        if files.is_folder:
            paths = []
            for path in sorted(files.path.rglob("*")):
                parts = path.relative_to(files.path).parts
                # Hidden files and Python's own cache, which is never read, are not part of the model.
                is_ignored = any(part.startswith(".") or part == "__pycache__" for part in parts)
                if path.is_file() and not is_ignored:
                    paths.append(path)
            if len(paths) > MOST_FILES:
                raise ModelFault(f"Model {name!r} has {len(paths)} files; at most {MOST_FILES} are taken.")
        else:
            declaration = files.folder / files.declaration
            paths = [files.path, declaration] if declaration.is_file() else [files.path]
        for path in paths:
            if not path.resolve().is_relative_to(files.root.resolve()):
                raise ModelFault(f"Model {name!r} has a link that leads out of the folder of models.")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            digests[path.relative_to(files.folder).as_posix()] = digest
    except OSError as error:
        raise ModelFault(f"A file of model {name!r} cannot be read: {error.strerror}.") from error
    return ModelContent(name, files, MappingProxyType(digests))


def check_allowed(content: ModelContent, list_file: Path) -> None:
    """Raise ModelFault, naming the file, unless every file of the model is listed with its hash.

    A list that cannot be read allows nothing.
    """
    try:
        lines = list_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFault("The list of allowed hashes cannot be read, so no model file is loaded.") from error
    allowed = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LISTED.fullmatch(line)
        if found is None:
            raise ModelFault(
                f"Line {number} of the list of allowed hashes is not as sha256sum writes it, so no model "
                "file is loaded."
            )
        allowed[PurePosixPath(found[2]).as_posix()] = found[1].lower()
    folder = content.files.folder.relative_to(content.files.root)
    for file, digest in content.digests.items():
        path = (folder / file).as_posix()
        if path not in allowed:
            raise ModelFault(
                f"Model {content.name!r} is refused: {path} is not in the list of allowed hashes. If it is "
                f"meant to be served, add the line that sha256sum prints for it: {digest}  {path}"
            )
        if allowed[path] != digest:
            raise ModelFault(
                f"Model {content.name!r} is refused: the SHA-256 of {path} is {digest}, but the list of "
                f"allowed hashes says {allowed[path]}."
            )
