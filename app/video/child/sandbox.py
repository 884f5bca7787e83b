"""The sandbox: once locked down, the process can only compute, and use its channel and its video.

Landlock denies the file system, TCP and signals to other processes; a seccomp filter denies every system call
that a decoder does not need. Neither needs privileges. Descriptors can be received, but only over the
channel: the host at its other end sends one in a child's life, the video's, and the child can make no other
socket. Sources: linux/landlock.h, linux/seccomp.h, linux/filter.h, and the kernel's syscall tables.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
from pathlib import Path

from app.video.protocol.messages import LockDown


class SandboxUnavailable(Exception):
    """This machine cannot enforce a required part of the sandbox."""


def lock_down(*, channel: int, memory_bytes: int, require: bool) -> LockDown:
    """Give up all that this process could do beyond computing and using the socket `channel`.

    It may take `memory_bytes` of address space on top of what it has. Raises SandboxUnavailable if
    `require` is set and Landlock or seccomp is not available.
    """
    # Be the first to go when memory runs out, the last to see a terminal's signals, and never an orphan.
    Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # the parent is the fork server's only thread, which stays
    _prctl(_PR_SET_DUMPABLE, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    os.closerange(3, channel)
    os.closerange(channel + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    for name, value in (
        (resource.RLIMIT_AS, in_use + memory_bytes),
        (resource.RLIMIT_CPU, _MAX_CPU_SECONDS),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _MAX_DESCRIPTORS),
    ):
        resource.setrlimit(name, (value, value))
    no_new_privileges = _prctl(_PR_SET_NO_NEW_PRIVS, 1) == 0
    landlock_abi, has_seccomp = _enter_landlock(), _enter_seccomp(channel)
    if require and not (no_new_privileges and landlock_abi and has_seccomp):
        raise SandboxUnavailable
    return LockDown(
        landlock_abi, seccomp=has_seccomp, no_new_privileges=no_new_privileges, memory_limited=True
    )


# -- limits of any process

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MAX_DESCRIPTORS = 32
_MAX_CPU_SECONDS = 24 * 3600  # of a child's life. A hang is noticed long before; the next child goes on

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> int:
    result: int = _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)
    return result


# -- Landlock

_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_QUERY_VERSION = 1
_FS_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # number of rights, from bit 0 on


def _enter_landlock() -> int:
    """Deny all that Landlock can deny. Return its ABI version, 0 if it is not available."""
    abi = int(_libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_QUERY_VERSION))
    if abi < 1:
        return 0
    rights = (1 << _FS_RIGHTS_BY_ABI[min(abi, 5)]) - 1
    network = 0b11 if abi >= 4 else 0  # bind and connect of TCP
    scopes = 0b11 if abi >= 6 else 0  # abstract sockets, signals
    attributes = struct.pack("=QQQ", rights, network, scopes)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = int(_libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    if ruleset < 0:
        return 0
    try:
        return abi if _libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


# -- seccomp

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000
_KILL = 0x80000000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_SET, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets into struct seccomp_data
_SECCOMP_SET_MODE_FILTER, _SECCOMP_ALL_THREADS = 1, 1
_X32_CALLS = 0x40000000

_CLONE_THREAD = 0x00010000
_AT_EMPTY_PATH = 0x1000
_PROT_EXEC = 4
_FCNTL_ALLOWED = (0, 1, 2, 3, 1030)  # duplicate, close-on-exec flags, status flags
_PRCTL_SET_NAME = 15

# Each name with its numbers on x86-64 and AArch64; -1 where the architecture lacks it.
_SYSCALLS = {
    name: (int(x86_64), int(aarch64))
    for line in (
        "read 0 63, pread64 17 67, readv 19 65, write 1 64, writev 20 66, lseek 8 62, fstat 5 80",
        "close 3 57, dup 32 23, poll 7 -1, ppoll 271 73",
        "munmap 11 215, mremap 25 216, madvise 28 233, brk 12 214",
        "futex 202 98, set_robust_list 273 99, rseq 334 293, membarrier 324 283, sched_yield 24 124",
        "sched_getaffinity 204 123, getcpu 309 168, getrusage 98 165, sysinfo 99 179, getrandom 318 278",
        "clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115, nanosleep 35 101",
        "gettimeofday 96 169, time 201 -1",
        "rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, sigaltstack 131 132",
        "restart_syscall 219 128, getpid 39 172, gettid 186 178, exit 60 93, exit_group 231 94",
        # with conditions
        "mmap 9 222, mprotect 10 226, clone 56 220, clone3 435 435, fcntl 72 25, prctl 157 167",
        "newfstatat 262 79, prlimit64 302 261, tgkill 234 131, recvmsg 47 212",
        "seccomp 317 277",  # to install the filter, which refuses it
    )
    for name, x86_64, aarch64 in (entry.split() for entry in line.split(", "))
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_Program = list[tuple[int, int, int, int]]


def _enter_seccomp(channel: int) -> bool:
    """Allow only some system calls, in every thread. Return whether the filter is in force."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    column, audit_number = known
    numbers = {name: numbers[column] for name, numbers in _SYSCALLS.items()}
    allow, refuse = _ALLOW, _REFUSE | errno.EPERM
    conditions: dict[str, _Program] = {
        "mmap": _if_set(2, _PROT_EXEC, refuse, allow),
        "mprotect": _if_set(2, _PROT_EXEC, refuse, allow),
        "clone": _if_set(0, _CLONE_THREAD, allow, refuse),
        "clone3": [(_RETURN, 0, 0, _REFUSE | errno.ENOSYS)],  # the C library then falls back to clone
        "fcntl": _if_among(1, _FCNTL_ALLOWED, refuse),
        "prctl": _if_among(0, (_PRCTL_SET_NAME,), refuse),
        "newfstatat": _if_among(3, (_AT_EMPTY_PATH,), refuse),
        "prlimit64": [  # reading a limit, not setting it: no new limits are given
            _load_argument(2),
            (_JUMP_IF_EQUAL, 0, 3, 0),
            _load_argument(2, high=True),
            (_JUMP_IF_EQUAL, 0, 1, 0),
            (_RETURN, 0, 0, allow),
            (_RETURN, 0, 0, refuse),
        ],
        "tgkill": _if_among(0, (os.getpid(),), refuse),
        "recvmsg": _if_among(0, (channel,), refuse),
    }
    program: _Program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, audit_number),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_IF_AT_LEAST, 0, 1, _X32_CALLS),
        (_RETURN, 0, 0, refuse),
    ]
    for name, number in numbers.items():
        if name == "seccomp" or number < 0:
            continue
        block = conditions.get(name, [(_RETURN, 0, 0, _ALLOW)])
        program += [(_JUMP_IF_EQUAL, 0, len(block), number), *block]
    program.append((_RETURN, 0, 0, refuse))
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_program = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    status = _libc.syscall(numbers["seccomp"], _SECCOMP_SET_MODE_FILTER, _SECCOMP_ALL_THREADS, filter_program)
    return int(status) == 0


def _load_argument(index: int, *, high: bool = False) -> tuple[int, int, int, int]:
    return (_LOAD, 0, 0, _ARGUMENTS + 8 * index + 4 * high)


def _if_set(index: int, mask: int, then: int, otherwise: int) -> _Program:
    return [
        _load_argument(index),
        (_JUMP_IF_SET, 0, 1, mask),
        (_RETURN, 0, 0, then),
        (_RETURN, 0, 0, otherwise),
    ]


def _if_among(index: int, values: tuple[int, ...], refuse: int) -> _Program:
    tests = [(_JUMP_IF_EQUAL, len(values) - place, 0, value) for place, value in enumerate(values)]
    return [_load_argument(index), *tests, (_RETURN, 0, 0, refuse), (_RETURN, 0, 0, _ALLOW)]
