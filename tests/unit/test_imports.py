"""Imports keep the order that app/__init__.py tells, and no module outside the sandbox imports its code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).resolve().parents[2] / "app"
MODULES = sorted(APP.rglob("*.py"))
WORDLESS_NAMES = {"utils", "util", "helpers", "helper", "common", "core", "manager", "base", "misc"}


def _order() -> dict[str, int]:
    """Each name of the map's import order, and its step from the bottom."""
    prose = ast.get_docstring(ast.parse((APP / "__init__.py").read_text()))
    assert prose is not None
    told = prose[prose.index("Imports point down only") :]
    steps = re.search(r"``[a-z_ ]+``(?:\s*<\s*``[a-z_ ]+``)+", told)
    assert steps is not None, "app/__init__.py tells no import order"
    names = [re.findall(r"[a-z_]+", step) for step in steps.group().split("<")]
    return {name: number for number, step in enumerate(names) for name in step}


ORDER = _order()


def _part(module: Path) -> str:
    return module.relative_to(APP).parts[0].removesuffix(".py")


def _imported_parts(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.ImportFrom(module="app"):
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(name)) if name.startswith("app."):
                yield name.split(".")[1]
            case ast.Import():
                yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("app."))


def test_every_part_of_the_package_has_a_place_in_the_import_order():
    parts = {_part(module) for module in MODULES} - {"__init__", "__main__"}
    assert parts == set(ORDER)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(APP)))
def test_imports_point_down_only(module: Path):
    own = _part(module)
    height = ORDER.get(own, max(ORDER.values()) + 1)
    wrong = {part for part in _imported_parts(module) if part != own and ORDER[part] >= height}
    assert not wrong, f"{own} must not import {sorted(wrong)}: see app/__init__.py"


def test_nothing_is_imported_relatively():
    relative = [
        module
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


def test_no_module_has_a_name_that_says_nothing():
    names = {part.removesuffix(".py") for module in MODULES for part in module.relative_to(APP).parts}
    assert not names & WORDLESS_NAMES


def test_the_package_root_imports_nothing():
    statements = ast.parse((APP / "__init__.py").read_text()).body
    assert all(isinstance(statement, ast.Expr) for statement in statements)


def test_a_wrong_import_would_be_seen(tmp_path: Path):
    module = tmp_path / "planner.py"
    module.write_text("from app import web\nimport app.cli as c\nfrom app.jobs.store import JobStore\n")
    assert set(_imported_parts(module)) == {"web", "cli", "jobs"}


VIDEO = APP / "video"


def _modules_of(folder: Path) -> list[Path]:
    return [module for module in MODULES if module.is_relative_to(folder)]


def _imported(module: Path) -> set[str]:
    """The dotted names of all that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.ImportFrom(module=str(source)):
                names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
            case ast.Import():
                names |= {alias.name for alias in node.names}
    return names


def _imports_of(module: Path, *packages: str) -> set[str]:
    return {
        name for name in _imported(module) for package in packages if f"{name}.".startswith(f"{package}.")
    }


def _application_imports(module: Path) -> set[str]:
    """What a module imports of the application, packages that only lead to it aside."""
    return _imports_of(module, "app") - {"app", "app.video"}


def test_only_one_module_names_the_sandboxs_code_and_none_but_the_sandbox_imports_av():
    outside = [module for module in MODULES if not module.is_relative_to(VIDEO / "child")]
    found = {module: names for module in outside if (names := _imports_of(module, "app.video.child", "av"))}
    assert found == {VIDEO / "launch.py": {"app.video.child.main", "app.video.child.main.serve"}}


def test_the_sandbox_imports_the_protocol_and_nothing_else_of_the_application():
    for module in _modules_of(VIDEO / "child"):
        own = _imports_of(module, "app.video.child", "app.video.protocol")
        assert _application_imports(module) == own, module


def test_the_protocol_imports_neither_side():
    for module in _modules_of(VIDEO / "protocol"):
        assert _application_imports(module) == _imports_of(module, "app.video.protocol"), module


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("app.video.decoder", {"av", "torch"}),
        ("app.video.results", {"av", "torch"}),
        ("app.programs.host", {"av"}),
        ("app.programs.engine", {"av", "torch", "cv2", "onnxruntime", "multiprocessing.forkserver"}),
        ("app.programs.web", {"av", "torch", "cv2", "numpy"}),
        ("app.programs.courier", {"av", "torch", "cv2", "numpy"}),
    ],
)
def test_no_program_loads_what_it_must_not(name: str, absent: set[str]):
    """No parser of hostile bytes outside the sandbox; no model where there is no device."""
    show = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", show], check=True, capture_output=True, text=True, cwd=APP.parent, timeout=120
    ).stdout.split()
    assert name in loaded
    parsers = "app.video.child."
    assert not [module for module in loaded if f"{module}.".startswith(parsers)]
    assert not absent & set(loaded)
