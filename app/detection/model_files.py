"""A model's files, identified by their SHA-256: only the bytes that were hashed are loaded.

The administrator may keep a list of the files that may be loaded, as ``sha256sum`` writes it:

    cd models && find . -type f -exec sha256sum {} + > ../models.sha256

A model is then loaded only if each of its files is listed with its hash. The list should lie where those who
can write into the folder of models cannot.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import orjson
import structlog

from app.errors import ModelFault

DECLARATION_FILE = "framebox.toml"
CONFIG_FILE = "config.json"  # of a folder of Hugging Face
NETWORK_SUFFIXES = (".pt2", ".onnx", ".torchscript", ".pt")  # of files that hold a whole network
WEIGHTS_SUFFIX = ".pth"
SUFFIXES = (*NETWORK_SUFFIXES, WEIGHTS_SUFFIX)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
MOST_FILES = 1000  # in a model's folder
LONGEST_REASON = 200  # characters of a runtime's message
MIB = 1024 * 1024

FileMarks = tuple[tuple[str, int, int, int], ...]  # each file's path, inode, size, and time of change

_log = structlog.get_logger(__name__)

_LISTED = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def find_models(folder: Path | None) -> dict[str, tuple[Path, ...]]:
    """Return the files and folders of the models in `folder` by name; none if there is no folder.

    `hash_model` refuses those of which several have one name. Whatever is not a model is ignored: other
    files, names that are not plain, and links that lead out of the folder.
    """
    if folder is None:
        return {}
    root = folder.resolve()
    found: dict[str, tuple[Path, ...]] = {}
    for path in sorted(root.iterdir()):
        try:
            name = path.name if path.is_dir() else path.stem
            is_found = NAME.fullmatch(name) and _is_model(path) and path.resolve().is_relative_to(root)
        except OSError as error:  # such as lost+found, or a folder that was just removed
            _note_unreadable(path.name, error.strerror)
            continue
        if is_found:
            found[name] = (*found.get(name, ()), path)
    return found


def _is_model(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix in SUFFIXES and path.is_file()
    if any((path / file).is_file() for file in (DECLARATION_FILE, CONFIG_FILE)):
        return True
    return sum(file.suffix in SUFFIXES and file.is_file() for file in path.iterdir()) == 1


@lru_cache(maxsize=MOST_FILES)
def _note_unreadable(name: str, reason: str) -> None:
    """Log once that an entry of the folder of models cannot be looked into."""
    _log.warning("entry of the models folder is passed over", name=name, reason=reason)


def _files_of(path: Path) -> Iterator[Path]:
    """Yield the files of the model at `path`, without hidden ones and Python's cache, which is never read."""
    if not path.is_dir():
        yield path
        if (declaration := path.with_suffix(".toml")).is_file():
            yield declaration
        return
    for file in path.rglob("*"):
        parts = file.relative_to(path).parts
        if not any(part.startswith(".") or part == "__pycache__" for part in parts) and file.is_file():
            yield file


def file_marks(*paths: Path) -> FileMarks:
    """Return what changes whenever a file of the models at `paths` does."""
    marks = []
    for path in paths:
        with suppress(OSError):  # something was removed meanwhile
            for file in itertools.islice(_files_of(path), MOST_FILES):
                state = file.stat()
                marks.append((str(file), state.st_ino, state.st_size, state.st_mtime_ns))
    return tuple(sorted(marks))


def network_bytes(marks: FileMarks) -> int:
    """Return the size of the largest file of a network, which is read as a whole; 0 if there is none."""
    networks = (size for file, _, size, _ in marks if file.endswith((*SUFFIXES, ".safetensors")))
    return max(networks, default=0)


@dataclass(frozen=True, slots=True)
class ModelContent:
    """A model's files as they were hashed. A file that has changed since is not read."""

    name: str
    path: Path  # in the administrator's folder: a file with perhaps a declaration beside it, or a folder
    digests: Mapping[str, str]  # every file's name under `folder`, with slashes, and its SHA-256

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

    def read(self, file: str) -> bytes:
        """Return a file's bytes. Raises ModelFault if they are not those that were hashed."""
        try:
            content = (self.folder / file).read_bytes()
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
        if self.declaration not in self.digests:
            return {}
        try:
            return tomllib.loads(self.read(self.declaration).decode())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ModelFault(f"The declaration of model {self.name!r} is not valid TOML: {error}.") from error

    def fingerprint(self, revision: int) -> str:
        """Return the SHA-256 of all files' hashes and, in a folder, of their names, and of `revision`.

        A single file's name does not count: the same file under two names is the same model.
        """
        lines = [f"revision {revision}"]
        for file, digest in sorted(self.digests.items()):
            role = "declaration" if file == self.declaration else "network"
            lines.append(f"{digest}  {file if self.is_folder else role}")
        # A name may be any bytes.
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


@contextmanager
def read_as(what: str, name: str) -> Iterator[None]:
    """Report errors of the block, in which a library reads the file of model `name`, as ModelFault."""
    try:
        yield
    except ModelFault:
        raise
    except Exception as error:  # libraries raise whatever their parsers meet
        raise ModelFault(f"Model {name!r} cannot be read as {what}: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """Return the class of an error that a model's runtime raised, and the last line of its message."""
    message = str(error).partition("Exception raised from")[0]  # of torch; calls of its own code follow
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    last = lines[-1][:LONGEST_REASON].rstrip(".") if lines else ""
    return f"{type(error).__name__}: {last}" if last else type(error).__name__


def is_of_the_machine(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that may pass, unlike a lack of permission."""
    return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, PermissionError)


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


def hash_model(name: str, path: Path, *others: Path) -> ModelContent:
    """Hash the files of the model at `path`, a file or a folder in the folder of models.

    Raises ModelFault for one that cannot be read, that lies outside the folder of models, or that has the
    same name as `others`.
    """
    digests: dict[str, str] = {}
    content = ModelContent(name, path, MappingProxyType(digests))
    root = path.parent.resolve()
    if others:
        names = ", ".join(other.name for other in (path, *others))
        raise ModelFault(f"{1 + len(others)} models are called {name!r}: {names}. Rename all but one.")
    try:
        paths = sorted(itertools.islice(_files_of(path), MOST_FILES + 1))
        if len(paths) > MOST_FILES:
            raise ModelFault(f"Model {name!r} has more than {MOST_FILES} files.")
        for file in paths:
            if not file.resolve().is_relative_to(root):
                raise ModelFault(f"Model {name!r} has a link that leads out of the folder of models.")
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            digests[file.relative_to(content.folder).as_posix()] = digest
    except OSError as error:
        raise ModelFault(f"A file of model {name!r} cannot be read: {error.strerror}.") from error
    return content


def read_model(
    name: str, folder: Path | None, allowed_hashes: Path | None, *, most_bytes: int | None = None
) -> ModelContent | None:
    """Hash the files of model `name` in `folder`; None if there is none of that name.

    Raises ModelFault for files that cannot be read, or are not in the list `allowed_hashes` if there is one;
    and, before it is hashed, for a file of more than `most_bytes`.
    """
    paths = find_models(folder).get(name)
    if paths is None:
        return None
    size = max((size for _, _, size, _ in file_marks(*paths)), default=0)
    if most_bytes is not None and size > most_bytes:
        raise ModelFault(
            f"Model {name!r} has a file of {size // MIB} MiB, but a host may take {most_bytes // MIB} MiB of "
            "memory. Raise FRAMEBOX_HOST_MEMORY_BYTES."
        )
    content = hash_model(name, *paths)
    if allowed_hashes is not None:
        check_allowed(content, allowed_hashes)
    return content


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
    for file, digest in content.digests.items():
        path = (content.folder / file).relative_to(content.path.parent).as_posix()
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
