"""The child's way to the host."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from app.video.protocol import messages, ring
from app.video.protocol.messages import Command, Message

_DESCRIPTOR = struct.Struct("i")


class Channel:
    """The child's end: commands in, messages out, and three counters in shared memory for the watchdog."""

    def __init__(self, end: socket.socket, counters: npt.NDArray[np.uint64]) -> None:
        self._end = end
        self._descriptor = end.fileno()  # read and written as a file: calls for sockets are refused
        self._counters = counters

    def send(self, kind: Message, payload: bytes = b"") -> None:
        data = memoryview(messages.pack(kind, payload))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def show_read(self, packets: int) -> None:
        """Tell how many packets this child has read in its life."""
        self._counters[ring.READ_COUNTER] = packets

    def show_fed(self, packets: int) -> None:
        """Tell how many packets of the current request have been given to the decoder, the next included."""
        self._counters[ring.FED_COUNTER] = packets

    @contextmanager
    def show_opening(self) -> Iterator[None]:
        """Tell since when a container is being opened, in processor time, for as long as the block runs."""
        self._counters[ring.OPENING_COUNTER] = time.process_time_ns()
        yield
        self._counters[ring.OPENING_COUNTER] = 0

    def receive_video(self) -> tuple[int, bytes]:
        """Return the video's descriptor and the payload of VIDEO. Raises EOFError when the engine is gone."""
        head, ancillary, _, _ = self._end.recvmsg(messages.HEAD.size, socket.CMSG_SPACE(_DESCRIPTOR.size))
        if not ancillary:
            raise EOFError
        _, length = messages.HEAD.unpack(head)
        return _DESCRIPTOR.unpack(ancillary[0][2])[0], self._read(length)

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
