"""``python -m benchmarks.exporters FOLDER WHICH``: make the exports of one module, ``WHICH_exports.py``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks.exporters.expected import Exports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("which")
    chosen = parser.parse_args()
    exports = Exports(chosen.folder.resolve())
    exports.prepare()
    importlib.import_module(f"benchmarks.exporters.{chosen.which}_exports").make(exports)


if __name__ == "__main__":
    main()
