"""Writes THIRD_PARTY_NOTICES.md from the metadata of what is installed: `make notices`.

Listed is what requirements.txt pins, the whole tree, and torch.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageMetadata, distribution
from pathlib import Path

from av._core import library_meta
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[1]
PAGE = CHECKOUT / "THIRD_PARTY_NOTICES.md"

_HEAD = """# Third-party notices

Framebox itself is under the [Apache License 2.0](LICENSE). It runs on the Python distributions below, each
under the license that its own metadata names. The license's text lies in the distribution (`*.dist-info`).
`make notices` writes this page from what is installed.

| distribution | version | license | home page |
|---|---|---|---|
"""

_FOOT = """
## Libraries inside these distributions

- The wheel of `av` (PyAV) contains FFmpeg and the libraries that this FFmpeg was built with, such as x264,
  x265, dav1d, libvpx and SVT-AV1, each under its own license. FFmpeg reports its own as
  "{ffmpeg}".
- The wheel of `opencv-python-headless` contains FFmpeg and other libraries. Their licenses are in its file
  `cv2/LICENSE-3RD-PARTY.txt`.
- `torch` contains the libraries that are named in its license files. Its builds for CUDA also bring NVIDIA's
  libraries along. Those are distributions of their own under NVIDIA's licenses, and not in the table above.

nginx and Python are not part of Framebox. They come from the system or from the base image, with their own
licenses.
"""

_HOME_LABELS = ("homepage", "home", "source", "sourcecode", "code", "repository", "github", "documentation")


@dataclass(frozen=True, slots=True)
class Notice:
    """What one distribution says of itself. `version` is without the label of a local build."""

    name: str
    version: str
    license: str
    home_page: str

    def row(self) -> str:
        return f"| {self.name} | {self.version} | {self.license} | {self.home_page} |"


def render() -> str:
    """Return the page, sorted by name: the same on every machine that has the same distributions."""
    rows = [notice.row() for notice in notices()]
    return _HEAD + "\n".join(rows) + "\n" + _FOOT.format(ffmpeg=library_meta["libavcodec"]["license"])


def notices() -> list[Notice]:
    """Return the notice of each distribution that the service runs on, sorted by name."""
    return [notice_of(distribution(name)) for name in required_names()]


def required_names() -> list[str]:
    """Return the names in requirements.txt, and torch without NVIDIA's libraries, sorted."""
    lock = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8")
    return sorted(["torch", *re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)])


def notice_of(found: Distribution) -> Notice:
    """Return what `found` says of itself."""
    about = found.metadata
    version = found.version.partition("+")[0]
    return Notice(canonicalize_name(about["Name"]), version, _license(about), _home_page(about))


def _license(about: PackageMetadata) -> str:
    """The license by the newest of the fields that were ever meant for it."""
    if expression := about.get("License-Expression"):
        return expression
    classifiers = about.get_all("Classifier") or []
    names = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License :: ")]
    names = [name for name in names if name != "OSI Approved"]
    if names:
        return ", ".join(sorted(names))
    return (about.get("License") or "not named").partition("\n")[0]


def _home_page(about: PackageMetadata) -> str:
    """The address of the project: what it calls its home page, else where its source is."""
    links = {}
    for line in about.get_all("Project-URL") or []:
        label, _, address = line.partition(",")
        links[re.sub(r"[^a-z]", "", label.lower())] = address.strip()
    links.setdefault("homepage", about.get("Home-page") or "")
    return next((links[label] for label in _HOME_LABELS if links.get(label)), "not named")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(notices())} distributions\n")
