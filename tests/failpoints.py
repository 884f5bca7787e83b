"""The places where a process can be made to die (`app/failpoints.py`), for the tests that kill it there."""

from __future__ import annotations

import ast
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# What receives videos runs in the HTTP workers: tests/integration/test_web_failpoints.py kills these.
OF_THE_WEB_SIDE = {
    "app/jobs/intake.py",
    "app/storage/joining.py",
    "app/storage/spool.py",
    "app/storage/uploads.py",
}
OF_THE_COURIER = {"app/courier/deliverer.py", "app/courier/fetcher.py"}  # tests/integration/test_courier.py


def points_in_source() -> dict[str, str]:
    """Return each name that `fail_point` is called with, and the module; fail if a name is used twice."""
    points: dict[str, str] = {}
    for module in sorted((CHECKOUT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fail_point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), module
                assert isinstance(name.value, str), module
                assert name.value not in points, name.value
                points[name.value] = str(module.relative_to(CHECKOUT))
    return points


class Armed:
    """The folder of armed places."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def arm(self, name: str) -> Path:
        """Return the file that is gone once a process has died at `name`."""
        path = self.folder / name
        path.touch()
        return path
