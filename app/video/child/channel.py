"""What the child shares with its host: a socket, three counters, and memory for pictures."""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from app.video.protocol import messages, ring
from app.video.protocol.messages import Command, Message

_MADV_POPULATE_WRITE: Final = 23  # since Linux 5.14


class Channel:
    """The child's end of the socket: commands in, messages out. Counters show the host that it is alive."""

    def __init__(self, end: socket.socket, counters: npt.NDArray[np.uint64]) -> None:
        self._end = end
        self._descriptor = end.fileno()  # read and written as a file: calls for sockets are refused
        self._counters = counters

    def send(self, kind: Message, payload: bytes = b"") -> None:
        data = memoryview(messages.pack(kind, payload))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def show_read(self, packets: int) -> None:
        """Show how many packets this child has read in its life."""
        self._counters[ring.READ_COUNTER] = packets

    def show_fed(self, packets: int) -> None:
        """Show how many packets of the current request the decoder has got, including the next."""
        self._counters[ring.FED_COUNTER] = packets

    @contextmanager
    def show_opening(self) -> Iterator[None]:
        """Show, while the block runs, the processor time at which opening a container began."""
        self._counters[ring.OPENING_COUNTER] = time.process_time_ns()
        yield
        self._counters[ring.OPENING_COUNTER] = 0

    def receive_video(self) -> tuple[int, bytes]:
        """Return the video's descriptor and the payload of VIDEO. Raises EOFError when the host is gone."""
        head, descriptors, _, _ = socket.recv_fds(self._end, messages.HEAD.size, 1)
        if not descriptors:
            raise EOFError
        _, length = messages.HEAD.unpack(head)
        return descriptors[0], self._read(length)

    def receive(self) -> tuple[Command, bytes]:
        """Return the next command. Raises EOFError when the host is gone."""
        kind, length = messages.HEAD.unpack(self._read(messages.HEAD.size))
        return Command(kind), self._read(length)

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = os.read(self._descriptor, min(count - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class SharedPictures:
    """The child's view of the ring. Its pages are allocated when they are used.

    A page that is allocated by a write costs a fault, half the time that it takes to fill the page. So
    `prepare` asks for the pages of a whole picture at once.
    """

    def __init__(self, mapping: mmap.mmap) -> None:
        memory = np.frombuffer(mapping, dtype=np.uint8)
        self._mapping = mapping
        self._populated_end = ring.HEADER_BYTES
        self.counters: npt.NDArray[np.uint64] = ring.counters(memory)
        self.pixels: npt.NDArray[np.uint8] = memory[ring.HEADER_BYTES :]  # (ring_bytes,)

    def prepare(self, end: int) -> None:
        """Allocate the pages of `pixels` up to byte `end`."""
        start, end = self._populated_end, -(-(ring.HEADER_BYTES + end) // mmap.PAGESIZE) * mmap.PAGESIZE
        if end > start:
            self._populated_end = end
            with suppress(OSError):  # then they are allocated one by one
                self._mapping.madvise(_MADV_POPULATE_WRITE, start, end - start)
