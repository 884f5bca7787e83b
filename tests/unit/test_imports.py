"""The import order that app/__init__.py tells in prose is the one that the modules keep."""

from __future__ import annotations

import ast
import re
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
