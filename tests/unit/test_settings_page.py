"""docs/settings.md says what app/settings.py says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def _page() -> str:
    return (CHECKOUT / "docs" / "settings.md").read_text()


def test_the_page_of_settings_is_the_one_that_the_settings_make() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_settings; print(make_settings.render(), end='')"],
        cwd=CHECKOUT / "docs",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert _page() == made, "stale: run `make docs`"


def test_only_settings_that_are_bytes_are_told_in_units_of_bytes() -> None:
    rows = re.findall(r"^\| `FRAMEBOX_(\w+)` \| (.*?) \| (.*?) \|", _page(), re.MULTILINE)
    with_units = {name for name, *cells in rows if re.search(r"\d [KMGT]i?B\)", " ".join(cells))}
    assert with_units == {
        "MAX_UPLOAD_BYTES",
        "MIN_FREE_BYTES",
        "KEEP_FREE_BYTES",
        "DECODER_MEMORY_BYTES",
        "RING_BYTES",
        "MAX_HEADER_BYTES",
        "INSTANCE_MEMORY_BYTES",
        "HOST_MEMORY_BYTES",
    }
    defaults = {name: default for name, default, _ in rows}
    assert defaults["MAX_DECODED_PIXELS"] == "`140737488355328` (1.4e14)"
    assert defaults["MAX_PIXELS"] == "`35389440` (35,389,440)"
    assert defaults["MAX_UPLOAD_BYTES"] == "`110000000000` (110 GB)"
    assert defaults["PORT"] == "`8080`"
