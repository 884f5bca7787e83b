"""The administrator's list of files that may be loaded, as ``sha256sum`` writes it:

    cd models && find . -type f -exec sha256sum {} + > ../models.sha256

A model is loaded if each of its files is listed with the hash that it has. The list should lie where those
who can write into the folder of models cannot.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from app.detection.model_content import ModelContent
from app.errors import ModelFault

_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


def check_allowed(content: ModelContent, list_file: Path) -> None:
    """Raises ModelFault, naming the file, unless every file of the model is listed with its hash.

    A list that cannot be read allows nothing.
    """
    allowed = _read_list(list_file)
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


def _read_list(list_file: Path) -> dict[str, str]:
    """Return each listed path and its hash."""
    try:
        lines = list_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFault("The list of allowed hashes cannot be read, so no model file is loaded.") from error
    allowed = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ModelFault(
                f"Line {number} of the list of allowed hashes is not as sha256sum writes it, so no model "
                "file is loaded."
            )
        allowed[PurePosixPath(found[2]).as_posix()] = found[1].lower()
    return allowed
