"""``python -m benchmarks NAME [OPTIONS]`` runs one measurement; without a name, lists them.

The way in matters: decoder children import the main module of their parent again, unless it is a package's
``__main__`` as the engine's is. A benchmark started as its own main module would measure those imports.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from app.memory import keep_freed_memory, use_one_arena

OTHERS = (
    *("__init__", "__main__", "census", "gpu_bench", "gpu_steps", "local_runner", "machine"),
    *("plain_detection", "plain_service", "process_memory", "seeded"),
)
NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in OTHERS)


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print("python -m benchmarks NAME [--help]; NAME is one of: " + ", ".join(NAMES))
        return 2
    name = sys.argv.pop(1)
    # As a host has it (`start_host` in `app/programs/start.py`), before anything loads torch or onnxruntime.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    use_one_arena()
    keep_freed_memory()
    importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
