"""Ports for servers that tests start, where other tests run at the same time."""

from __future__ import annotations

import socket

_reserved: list[socket.socket] = []


def free_port() -> int:
    """Return a port of 127.0.0.1 that only these tests use.

    It stays bound until they end, so that the kernel gives it to no other socket. A server that sets
    SO_REUSEADDR, as nginx does, can listen on it all the same.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    _reserved.append(reservation)
    return int(reservation.getsockname()[1])
