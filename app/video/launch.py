"""Where a child process begins: the only module outside `child/` that imports its code."""

from __future__ import annotations

from app.video.protocol.plan import ChildPlan

# What the fork server loads in advance: children start within milliseconds, and cannot import anything once
# they are locked down. The first loads every module of av; without the last two, each child would load them.
PRELOADED = [
    "app.video.child.main",
    "app.video.launch",
    "multiprocessing.popen_forkserver",
    "encodings.ascii",
]


def run_child(plan: ChildPlan) -> None:
    """Be a decoder child until the process ends."""
    # Imported here because this runs in the child: a process that only starts children must load neither av
    # nor a parser.
    from app.video.child.main import serve  # noqa: PLC0415

    serve(plan)
