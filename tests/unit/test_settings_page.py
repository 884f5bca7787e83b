"""docs/settings.md says what app/settings.py says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def test_the_page_of_settings_is_the_one_that_the_settings_make() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_settings; print(make_settings.render(), end='')"],
        cwd=CHECKOUT / "docs",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    assert (CHECKOUT / "docs" / "settings.md").read_text() == made, "stale: run `make docs`"
