"""Writes what the README shows anew: its answers and its picture, from a running instance.

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
README = CHECKOUT / "README.md"
CLIP = CHECKOUT / "docs" / "walkers.mp4"
ADDRESS = "http://localhost:8080"


def main(address: str) -> None:
    """Run the README's first two curl lines and put what they print into the blocks that follow them."""
    text = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "docs").symlink_to(CHECKOUT / "docs")
        lines = re.findall(r"^curl .*$", text, re.MULTILINE)
        for line, language in zip(lines, ("json", "http"), strict=False):
            text = _with_block(text, language, _run(line.replace(ADDRESS, address), folder))
        README.write_text(text, encoding="utf-8")
        answer = folder / "answer.json"
        answer.write_text(_run(f"curl -F video=@docs/walkers.mp4 {address}/v1/detections", folder))
        walkers.write_picture(CLIP, answer, CHECKOUT / "docs" / "frames.jpg")


def _run(line: str, folder: Path) -> str:
    line = line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
    done = subprocess.run(["bash", "-c", line], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.replace("\r", "").strip()


def _with_block(text: str, language: str, content: str) -> str:
    changed, count = re.subn(
        rf"^```{language}\n.*?^```$",
        lambda _: f"```{language}\n{content}\n```",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"README.md has {count} blocks of {language}")
    return changed


if __name__ == "__main__":
    main(*(sys.argv[1:] or [ADDRESS]))
