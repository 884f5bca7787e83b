"""docs/operations.md names metrics, settings and commands that there are, and all metrics that there are."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from ruamel.yaml import YAML

from app import cli
from app.programs.web import create_app
from app.settings import MIB, Settings

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "operations.md").read_text()
NAME = re.compile(r"\bframebox_[a-z_]+")
HISTOGRAM_SUFFIXES = ("_bucket", "_sum", "_count")


@pytest.fixture
def exposed(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Every metric of /metrics and its type, without a sample of any."""
    app = create_app(Settings(data=tmp_path / "data"))
    text = app.test_client().get("/metrics").get_data(as_text=True)
    yield dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    app.extensions["framebox"].watcher.close()
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()


def rules() -> list[dict[str, Any]]:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (group,) = YAML(typ="safe").load(block)["groups"]
    return list(group["rules"])


def test_the_table_has_every_metric_and_no_other(exposed: dict[str, str]) -> None:
    assert exposed
    table = set(re.findall(r"^\| `(framebox_[a-z_]+)` \|", PAGE, re.MULTILINE))
    assert table == {name for name in exposed if not name.endswith("_created")}


def test_no_metric_is_named_that_does_not_exist(exposed: dict[str, str]) -> None:
    samples = {
        name + suffix
        for name, kind in exposed.items()
        if kind == "histogram"
        for suffix in HISTOGRAM_SUFFIXES
    }
    assert set(NAME.findall(PAGE)) <= {*exposed, *samples}


def test_every_alert_is_whole_and_asks_for_a_metric_of_ours() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(names) == len(set(names)) > 5
    for rule in rules():
        assert NAME.search(rule["expr"])
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["expr"].count("{") == rule["expr"].count("}")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith(".")


def test_settings_and_commands_are_those_that_there_are() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"FRAMEBOX_([A-Z_]+)", PAGE)) <= settings
    assert set(re.findall(r"python -m app ([a-z-]+)", PAGE)) <= cli.COMMANDS.keys()


def test_the_memory_budgets_are_those_of_the_settings() -> None:
    section = PAGE.partition("\n## Memory\n")[2].partition("\n## ")[0]
    told = {
        name: int(size) for name, size in re.findall(r"^\| ([A-Za-z ]+) \| (\d+) \|", section, re.MULTILINE)
    }
    budgets = Settings().memory_budgets()
    assert {name.lower(): size for name, size in told.items()} == {k: v // MIB for k, v in budgets.items()}
    assert f"add up to {sum(budgets.values()) // MIB} MiB" in section
