"""docs/jobs.md and docs/glossary.md say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from app.errors import error_classes
from app.jobs.job import DeliveryState, JobState, Waiting
from app.settings import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
JOBS = (CHECKOUT / "docs" / "jobs.md").read_text()
GLOSSARY = (CHECKOUT / "docs" / "glossary.md").read_text()


def section(heading: str) -> str:
    return JOBS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_the_diagram_has_every_state_and_only_final_ones_end() -> None:
    (diagram,) = re.findall(r"^```mermaid\nstateDiagram-v2\n(.*?)^```$", JOBS, re.MULTILINE | re.DOTALL)
    moves = re.findall(r"^ +(\S+) --> ([^:\s]+): .+$", diagram, re.MULTILINE)
    assert len(moves) == len(diagram.splitlines())
    assert {name for move in moves for name in move} == {"[*]", *JobState}
    final = {state for state in JobState if state.is_final}
    assert {before for before, after in moves if after == "[*]"} == final
    assert {after for before, after in moves if before == "[*]"} == {JobState.QUEUED}
    left = {before for before, after in moves if after != "[*]"}
    assert left == {"[*]", *JobState} - final


def test_what_a_client_sees_is_told_of_every_state() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", section("What a client sees"), re.MULTILINE)
    assert rows == [*JobState]


def test_every_reason_to_wait_is_told() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("`waiting`"), re.MULTILINE)) == set(Waiting)


def test_codes_and_settings_are_those_that_there_are() -> None:
    table = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", section("What moves a job"), re.MULTILINE)
    codes = [code for row in table for code in re.findall(r"`(\w+)`", row)]
    assert len(codes) > 5
    assert error_classes().keys() >= set(codes)
    assert set(re.findall(r"FRAMEBOX_([A-Z_]+)", JOBS)) <= {name.upper() for name in Settings.model_fields}
    assert all(f"`{state}`" in section("Telling its end") for state in DeliveryState)


def test_the_glossary_is_in_order_and_leads_to_files_that_exist() -> None:
    words = re.findall(r"^- \*\*(.+?)\*\*: .+$", GLOSSARY, re.MULTILINE)
    assert len(words) == GLOSSARY.count("\n- ")
    assert words == sorted(set(words), key=str.casefold)
    assert all((CHECKOUT / path).exists() for path in re.findall(r"`(app/[a-z_/.]+)`", GLOSSARY))
