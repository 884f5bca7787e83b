"""Writes anew what README.md and docs/api.md show of a running instance: an answer, its headers, the picture.

python docs/make_examples.py [http://localhost:8080]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import walkers

CHECKOUT = Path(__file__).resolve().parents[1]
EXAMPLES = {"README.md": "json", "docs/api.md": "http"}  # the language of the block
CLIP = CHECKOUT / "docs" / "walkers.mp4"
ADDRESS = "http://localhost:8080"


def main(address: str) -> None:
    """Put what the command before each of the `EXAMPLES` prints into its block."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "docs").symlink_to(CHECKOUT / "docs")
        for name, language in EXAMPLES.items():
            page = CHECKOUT / name
            text = page.read_text(encoding="utf-8")
            (command, block), *others = re.findall(
                rf"^(curl [^\n]*)\n```\n\n(```{language}\n.*?^```)$", text, re.MULTILINE | re.DOTALL
            )
            if others:
                raise ValueError(f"{name} has several examples in {language}")
            shown = _run(command.replace(ADDRESS, address), folder)
            page.write_text(text.replace(block, f"```{language}\n{shown}\n```"), encoding="utf-8")
        answer = folder / "answer.json"
        answer.write_text(_run(f"curl -F video=@docs/walkers.mp4 {address}/v1/detections", folder))
        walkers.write_picture(CLIP, answer, CHECKOUT / "docs" / "frames.jpg")


def _run(line: str, folder: Path) -> str:
    line = line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", line], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.replace("\r", "").strip()


if __name__ == "__main__":
    main(*(sys.argv[1:] or [ADDRESS]))
