"""Places where a process can be made to die, to show that nothing is lost there.

A test names a folder in FRAMEBOX_FAILPOINTS, and puts a file there that is named like the place. The first
process that reaches the place removes the file and kills itself, as ``kill -9`` would. Without the variable,
a place costs one look-up in the environment.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

FOLDER_VARIABLE = "FRAMEBOX_FAILPOINTS"


def fail_point(name: str) -> None:
    """Die here if the place `name` is armed; a literal, since a test lists all of them from the source."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    try:
        (Path(folder) / name).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
