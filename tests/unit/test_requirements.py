"""The locks (requirements*.txt) pin the whole tree of requirements*.in; docs/dependencies.md explains it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "dependencies.md").read_text()
SOURCES = {
    "requirements.txt": ["requirements.in"],
    "requirements-torch-cuda.txt": ["requirements-torch.in"],
    "requirements-torch-cpu.txt": [],
    "requirements-onnx-gpu.txt": ["requirements-onnx-gpu.in"],
    "requirements-huggingface.txt": ["requirements-huggingface.in"],
    "requirements-dev.txt": ["requirements-dev.in"],
}
# The locks whose packages are installed where the tests run; those of torch are not all.
INSTALLED = ["requirements.txt", "requirements-huggingface.txt", "requirements-dev.txt"]


def pins(*names: str) -> dict[str, str]:
    """Return the version of each distribution that these files name."""
    text = "".join((CHECKOUT / name).read_text() for name in names)
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def requirements(name: str) -> list[str]:
    """Return the requirements of a file, each in one line with its hashes."""
    lines = (CHECKOUT / name).read_text().replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith(("#", " ", "--"))]


def test_every_source_has_its_lock_and_every_lock_its_source() -> None:
    assert {file.name for file in CHECKOUT.glob("requirements*.txt")} == SOURCES.keys()
    sources = {source for names in SOURCES.values() for source in names}
    assert {file.name for file in CHECKOUT.glob("requirements*.in")} == sources
    makefile = (CHECKOUT / "Makefile").read_text()
    assert not [name for name in {*SOURCES, *sources} if name not in makefile]


@pytest.mark.parametrize("source", sorted(file.name for file in CHECKOUT.glob("requirements*.in")))
def test_every_direct_requirement_is_pinned(source: str) -> None:
    lines = requirements(source)
    assert lines
    assert not [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)]


@pytest.mark.parametrize("lock", SOURCES)
def test_every_line_of_a_lock_has_a_version_and_hashes(lock: str) -> None:
    pinned = re.compile(r"[a-z0-9-]+==[0-9][^\s;]*( ; [^\\]+?)?\s+(--hash=sha256:[0-9a-f]{64}\s*)+")
    lines = requirements(lock)
    assert lines
    assert not [line for line in lines if not pinned.fullmatch(line)]


@pytest.mark.parametrize("lock", SOURCES)
def test_a_lock_has_the_versions_of_its_source(lock: str) -> None:
    locked = pins(lock)
    wanted = pins(*SOURCES[lock])
    assert {name: locked.get(name) for name in wanted} == wanted, "stale: run `make requirements`"


def test_both_builds_of_torch_are_of_one_version() -> None:
    version = pins("requirements-torch.in")["torch"]
    assert pins("requirements-torch-cpu.txt") == {"torch": f"{version}+cpu"}
    assert pins("requirements-torch-cuda.txt")["torch"] == version


def test_the_locks_agree_on_every_version() -> None:
    seen: dict[str, set[str]] = {}
    for lock in SOURCES:
        for name, version in pins(lock).items():
            seen.setdefault(name, set()).add(version.removesuffix("+cpu"))
    assert not {name: versions for name, versions in seen.items() if len(versions) > 1}


def test_only_the_lock_of_torch_for_cuda_names_libraries_of_nvidia() -> None:
    cuda = re.compile(r"torch|triton|(cuda|nvidia)-.*")
    named = {lock for lock in SOURCES for name in pins(lock) if cuda.fullmatch(name)}
    assert named == {"requirements-torch-cuda.txt", "requirements-torch-cpu.txt"}
    assert len([name for name in pins("requirements-torch-cuda.txt") if cuda.fullmatch(name)]) > 10


def needed(names: Iterable[str]) -> set[str]:
    """Return what the installed distributions of these names need here, by their own metadata."""
    found = [Requirement(line) for name in names for line in distribution(name).requires or ()]
    found = [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    return {canonicalize_name(one.name) for one in found}


@pytest.mark.parametrize("lock", INSTALLED)
def test_a_lock_holds_the_whole_tree(lock: str) -> None:
    """pip is run with --no-deps: what a lock does not name is not installed."""
    here = [Requirement(line.partition(" --hash")[0]) for line in requirements(lock)]
    names = {one.name for one in here if one.marker is None or one.marker.evaluate()}
    assert needed(names) - names - {"torch"} == set()


def test_the_lock_of_the_service_holds_all_that_torch_needs_on_a_cpu() -> None:
    cuda = pins("requirements-torch-cuda.txt").keys()
    assert needed({"torch"}) - cuda - pins("requirements.txt").keys() == set()
    assert {"filelock", "jinja2", "networkx", "sympy"} <= pins("requirements.txt").keys()


def test_the_package_asks_for_what_the_service_runs_on() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    assert files == ["requirements.in", "requirements-torch.in"]


CALLED = {
    "av": "PyAV",
    "opencv-python-headless": "OpenCV",
    "types-psutil": "types-*",
    "types-requests": "types-*",
}


def explained() -> set[str]:
    """Return the names in the page's tables of packages, without those from the system, Python or npm."""
    tables = re.findall(r"^\| package \|.*\n\|---.*\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    rows = re.findall(r"^\| (.+?) \|", "".join(tables), re.MULTILINE)
    rows = [row for row in rows if not re.search(r"from the system|from Python|\(npm", row)]
    text = " ".join(re.sub(r"\(.*?\)|, from [0-9.]+|[0-9]+\.x", "", row) for row in rows)
    return {canonicalize_name(name) for name in re.findall(r"[A-Za-z][\w.*-]+", text)}


def direct_dependencies() -> set[str]:
    tables = pins("requirements.in", "requirements-torch.in", "requirements-dev.in")
    return {canonicalize_name(CALLED.get(name, name)) for name in tables}


def test_every_direct_dependency_is_explained() -> None:
    assert direct_dependencies() - explained() == set()
    models = pins(*(f"requirements-{kind}.in" for kind in ("onnx-gpu", "huggingface")))
    assert not [name for name in models if name not in PAGE]


def test_every_dependency_that_is_explained_is_pinned() -> None:
    assert explained() - direct_dependencies() == {"jinja2", "werkzeug"}, "Flask brings them along"
    assert "werkzeug" in pins("requirements.txt")
