"""Writes docs/settings.md from app/settings.py: `make docs`. A test holds the two together."""

from __future__ import annotations

import ast
import inspect
import sys
from itertools import pairwise
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from annotated_types import Ge, Gt, Le, Lt  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

from app.settings import GIB, MIB, Settings  # noqa: E402

PAGE = CHECKOUT / "docs" / "settings.md"

_HEAD = """# Settings

Environment variables, read once, when a program starts. `python -m app check-config` checks them, lists
every fault at once, and prints the values in force with the host memory that they add up to. `make serve`
takes them from its environment (`FRAMEBOX_PORT=9000 make serve`), `docker compose` from a file `.env` beside
`docker-compose.yml` as well.

| variable | default | allowed | what |
|---|---|---|---|
"""

_FOOT = """
Lists are separated by commas. An empty variable counts as unset. Relative paths start at the folder in which
the service is started.

Every instance has its own data folder: two with different `FRAMEBOX_PORT` and `FRAMEBOX_DATA` run side by
side. The path of the data folder may be 94 bytes long at most, because it contains a unix socket.

The memory budgets are what nginx, the HTTP workers, the engine, its decoders and their rings may take at
most. They must fit into `FRAMEBOX_INSTANCE_MEMORY_BYTES`, or nothing starts. [Operations](operations.md) says
how to plan memory, disk and retention.

If you start gunicorn without `python -m app web`, set `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` and
`PROMETHEUS_MULTIPROC_DIR` as described in `gunicorn.conf.py`. Tests read `FRAMEBOX_TEST_DATA`, the folder of
test data, and `FRAMEBOX_REQUIRE_TEST_DATA`, `FRAMEBOX_REQUIRE_CUDA`, `FRAMEBOX_REQUIRE_NAMESPACES`,
`FRAMEBOX_REQUIRE_CGROUP`, `FRAMEBOX_REQUIRE_BROWSER`: with `1`, what is missing fails tests instead of
skipping them.
"""


def render() -> str:
    """The page, from the fields in the order in which app/settings.py declares them."""
    descriptions = _descriptions()
    rows = [_row(name, field, descriptions[name]) for name, field in Settings.model_fields.items()]
    return _HEAD + "\n".join(rows) + "\n" + _FOOT


def _descriptions() -> dict[str, str]:
    """The text below each field. pydantic would read it too, but each time that a program starts."""
    [settings] = ast.parse(inspect.getsource(Settings)).body
    return {
        node.target.id: " ".join(text.split())
        for node, below in pairwise(settings.body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and (text := ast.literal_eval(below.value))
    }


def _row(name: str, field: FieldInfo, description: str) -> str:
    is_bytes = name.endswith("_bytes")
    cells = [
        f"`FRAMEBOX_{name.upper()}`",
        _default(field.default, is_bytes=is_bytes),
        _allowed(field, is_bytes=is_bytes),
        description,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: object, *, is_bytes: bool) -> str:
    match value:
        case None | () | "":
            return "empty"
        case Path():
            return f"`{value.relative_to(CHECKOUT)}/` in the checkout"
        case bool():
            return f"`{str(value).lower()}`"
        case int():
            return f"`{value}`{_in_words(value, is_bytes=is_bytes)}"
        case _:
            return f"`{value}`"


def _in_words(value: float, *, is_bytes: bool) -> str:
    """A number of many digits once more, as people read it: in units only where it is a size in bytes."""
    if is_bytes and value >= MIB:
        for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (10**9, "GB"), (10**6, "MB")):
            if value % unit == 0:
                return f" ({value // unit:.0f} {name})"
    if value >= 10**12:
        return f" ({value:.2g})".replace("e+", "e")
    return f" ({value:,})" if value >= 10**6 else ""


def _allowed(field: FieldInfo, *, is_bytes: bool) -> str:
    limits = []
    for rule in field.metadata:
        match rule:
            case Ge(ge=limit):
                limits.append(f"from {limit}{_in_words(limit, is_bytes=is_bytes)}")
            case Gt(gt=limit):
                limits.append(f"more than {limit}")
            case Le(le=limit):
                limits.append(f"to {limit}{_in_words(limit, is_bytes=is_bytes)}")
            case Lt(lt=limit):
                limits.append(f"less than {limit}")
            case _ if getattr(rule, "pattern", None):
                limits.append(f"`{rule.pattern.strip('^$()')}`".replace("|", "`, `"))
    if field.annotation is bool:
        limits.append("`true`, `false`")
    return " ".join(limits)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
