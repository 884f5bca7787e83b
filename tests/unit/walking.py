"""Runs a container's walker over bytes, and makes small containers to walk over."""

from __future__ import annotations

import os
import struct

from app.video.child.walkers.choice import walker_for

Notes = list[tuple[int, str]]


def walk(container: str, data: bytes, *, stops: list[int] | None = None) -> Notes | None:
    """Return what the walker notes, stopping at `stops` on its way; None if the container has no walker."""
    notes: Notes = []
    descriptor = os.memfd_create("walked")
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 7, os.SEEK_SET)
        walker = walker_for(container, descriptor, len(data), lambda at, reason: notes.append((at, reason)))
        if walker is None:
            return None
        for stop in stops or []:
            walker.walk_to(stop)
        walker.finish()
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 7  # FFmpeg uses the offset
    finally:
        os.close(descriptor)
    return notes


def ts_packet(
    pid: int,
    counter: int,
    content: bytes = b"",
    *,
    has_payload: bool = True,
    jumps: bool = False,
    is_bad: bool = False,
    begins: bool = False,
) -> bytes:
    """One packet of 188 bytes, with an adaptation field where it must have one."""
    has_field = jumps or not has_payload
    flags = is_bad << 15 | begins << 14
    head = struct.pack(">BHB", 0x47, flags | pid, has_field << 5 | has_payload << 4 | counter % 16)
    if not has_field:
        return (head + content).ljust(188, b"\xff")
    length = 1 if has_payload else 183
    return (head + bytes((length, 0x80 if jumps else 0)) + content).ljust(188, b"\xff")


def ts_run(pid: int, first: int, count: int) -> list[bytes]:
    return [ts_packet(pid, number, struct.pack(">I", number)) for number in range(first, first + count)]


def ogg_page(
    serial: int, number: int, *, flags: int = 0, granule: int = 1, body: bytes = b"x" * 500
) -> bytes:
    sizes = bytes((255,)) * (len(body) // 255) + bytes((len(body) % 255,))
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(sizes))
    return head + sizes + body


def flv(*sizes: int, lengths: str = "right") -> bytes:
    """A header and tags with so many bytes; `lengths`, behind them: "right", "zero" or "bare"."""
    made = b"FLV\x01\x05" + struct.pack(">II", 9, 0)
    for size in sizes:
        stored = {"right": size + 11, "zero": 0, "bare": size}[lengths]
        made += b"\x09" + struct.pack(">I", size)[1:] + bytes(7) + b"\x17" * size + struct.pack(">I", stored)
    return made


def ivf(*sizes: int, count: int = 0, codec: bytes = b"VP80", step: int = 1) -> bytes:
    frames = (struct.pack("<IQ", size, step * place) + b"\x31" * size for place, size in enumerate(sizes))
    return struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, codec, 320, 180, 25, 1, count, 0) + b"".join(frames)


def ps_pack(*, mpeg1: bool = False) -> bytes:
    return b"\0\0\1\xba" + (b"\x21" + bytes(7) if mpeg1 else b"\x44" + bytes(8) + b"\xf8")


def ps_packet(stream: int, size: int) -> bytes:
    return b"\0\0\1" + bytes((stream,)) + struct.pack(">H", size) + b"\x55" * size


def riff(kind: bytes, name: bytes, body: bytes, *, size: int | None = None) -> bytes:
    return kind + struct.pack("<I", len(body) + 4 if size is None else size) + name + body


def chunk(kind: bytes, body: bytes, *, pads: bool = True) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2 if pads else 0)


def element(name: int, body: bytes, *, has_size: bool = True) -> bytes:
    head = name.to_bytes((name.bit_length() + 7) // 8, "big")
    return head + (struct.pack(">Q", 1 << 56 | len(body)) if has_size else b"\xff") + body


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def fragment(number: int, *, track: int = 1, samples: int = 3) -> bytes:
    run = box(b"trun", struct.pack(">II", 0x200, samples), bytes(4 * samples))
    header = box(b"tfhd", struct.pack(">II", 0, track))
    moof = box(b"moof", box(b"mfhd", struct.pack(">II", 0, number)), box(b"traf", header, run))
    return moof + box(b"mdat", b"x" * 300)
