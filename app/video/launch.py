"""Where a child process begins: the one module on this side that names the child's code."""

from __future__ import annotations

from app.video.protocol.plan import ChildPlan

# What the server process loads before it forks children: they start within milliseconds, and can import
# nothing once they are locked down. With the first comes every module of av; the last two would otherwise be
# looked for and loaded by every child.
PRELOADED = [
    "app.video.child.main",
    "app.video.launch",
    "multiprocessing.popen_forkserver",
    "encodings.ascii",
]


def run_child(plan: ChildPlan) -> None:
    """Be a decoder child, to the process's end."""
    # Imported here, and not above, because this runs in the child: a process that only starts children must
    # load neither av nor a parser.
    from app.video.child.main import serve  # noqa: PLC0415

    serve(plan)
