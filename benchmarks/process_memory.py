"""What the processes of a job take, a host's and its children's, and what a device has given away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

MIB = 1024 * 1024
LOOK_SECONDS = 0.25


@contextmanager
def watched_memory(device: str) -> Iterator[dict[str, str]]:
    """Fill a dictionary, by kind of process, with the most that was seen while the block ran."""
    most: dict[str, tuple[int, str]] = {}
    told: dict[str, str] = {}
    done = threading.Event()

    def note(kind: str, size: int, figures: str) -> None:
        if size >= most.get(kind, (0, ""))[0]:
            most[kind] = (size, figures)

    def look() -> None:
        total = 0
        for kind, process in _processes():
            with suppress(psutil.Error):
                use = process.memory_full_info()
                total += use.pss
                note(kind, use.pss, f"PSS {use.pss // MIB} MiB, RSS {use.rss // MIB}")
        note("all", total, f"PSS {total // MIB} MiB")
        if device != "cpu":
            free, size = torch.cuda.mem_get_info(device)
            note("device", size - free, f"{(size - free) // MIB} MiB, of every process")
            reserved = torch.cuda.max_memory_reserved(device)
            note("torch on the device", reserved, f"{reserved // MIB} MiB")

    def watch() -> None:
        while not done.wait(LOOK_SECONDS):
            look()

    watcher = threading.Thread(target=watch, name="memory-watch")
    watcher.start()
    try:
        yield told
    finally:
        done.set()
        watcher.join()
        look()
        told |= {kind: figures for kind, (_, figures) in most.items()}


def _processes() -> Iterator[tuple[str, psutil.Process]]:
    """Yield this process, which is a host here, and its descendants: multiprocessing's, and decoders."""
    own = psutil.Process()
    yield "host", own
    for server in own.children():
        yield "forking server", server
        with suppress(psutil.Error):
            for decoder in server.children():
                yield "a decoder", decoder
