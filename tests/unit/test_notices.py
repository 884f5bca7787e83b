"""THIRD_PARTY_NOTICES.md says of what requirements.txt pins what that says of itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "THIRD_PARTY_NOTICES.md").read_text()
# Printed in a process of its own: docs/ is no package.
SHOW = """
import make_notices as made
for name in made.required_names():
    print(made.notice_of(made.distribution(name)).row())
"""


def test_every_requirement_is_noted_as_it_is_pinned_and_as_it_says_of_itself() -> None:
    made = subprocess.run(
        [sys.executable, "-c", SHOW],
        cwd=CHECKOUT / "docs",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    assert made
    assert [row for row in made if row not in PAGE.splitlines()] == [], "stale: run `make notices`"


def test_the_versions_are_those_of_the_requirements() -> None:
    noted = dict(re.findall(r"^\| ([a-z0-9-]+) \| ([0-9][^ ]*) \|", PAGE, re.MULTILINE))
    locks = [CHECKOUT / name for name in ("requirements.txt", "requirements-torch.in")]
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", "".join(lock.read_text() for lock in locks), re.MULTILINE)
    assert noted == dict(pins)


def test_the_rows_are_sorted_and_none_is_there_twice() -> None:
    names = re.findall(r"^\| ([a-z0-9-]+) \|", PAGE, re.MULTILINE)[1:]
    assert names == sorted(set(names))
