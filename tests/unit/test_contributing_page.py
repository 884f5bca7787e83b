"""CONTRIBUTING.md leads to names and files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = " ".join((CHECKOUT / "CONTRIBUTING.md").read_text().split())
PATHS = sorted(set(re.findall(r"`((?:app|tests|docs|deploy)/[A-Za-z_/.]+\.\w+)`", PAGE)))
# `NAME` in `FILE`, or `ONE` and `OTHER` in `FILE`
PLACES = [
    (name, path)
    for names, path in re.findall(
        r"((?:`[A-Za-z_]+`(?:, | and ))*`[A-Za-z_]+`) in `((?:app|tests)/[a-z_/]+\.py)`", PAGE
    )
    for name in re.findall(r"`(\w+)`", names)
]


@pytest.mark.parametrize("path", PATHS)
def test_every_file_that_is_named_exists(path: str) -> None:
    assert (CHECKOUT / path).exists()


@pytest.mark.parametrize(("name", "path"), PLACES)
def test_every_name_is_defined_where_the_page_says(name: str, path: str) -> None:
    text = (CHECKOUT / path).read_text()
    defined = rf"^ *(?:class|def) {name}\b|^{name}\b.*(?:=|:)|^ +{name} ="
    assert re.search(defined, text, re.MULTILINE), f"{path} does not define {name}"


def test_many_places_are_named() -> None:
    assert len(PLACES) > 40


def test_links_lead_to_files() -> None:
    for page in ("CONTRIBUTING.md", "SECURITY.md", "THIRD_PARTY_NOTICES.md"):
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", (CHECKOUT / page).read_text())
        assert all((CHECKOUT / target).exists() for target in targets), page


def test_the_targets_that_are_named_are_in_the_makefile() -> None:
    pages = PAGE + (CHECKOUT / "docs" / "releasing.md").read_text()
    makefile = (CHECKOUT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^|\s)make ([a-z0-9-]+)(?=`|\s+#|\s+PYTEST)", pages))
    assert {"test", "check", "fix", "pytest", "notices"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)
