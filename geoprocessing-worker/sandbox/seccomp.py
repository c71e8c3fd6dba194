"""A seccomp filter with an allow-list: files that are open or allowed by Landlock, memory, threads and time.

Landlock does not cover UDP and Unix sockets, and a fork that leaves its session survives the kill of its group. The
filter is written here as about a hundred comparisons. Python's bindings of libseccomp need that library on the system,
and the best known one has had no release since 2021.
"""

import errno
import os
import platform
import struct
from collections.abc import Iterator
from typing import NamedTuple

from geoprocessing_worker.sandbox import libc

ALLOW, ERRNO = 0x7FFF0000, 0x00050000

# BPF operations: load a word of seccomp_data, compare, return.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Offsets in struct seccomp_data. An argument has 8 bytes, the low half first.
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16
X32 = 0x40000000  # flag of the calls of the x32 ABI on x86_64

# Allowed with any arguments: numbers for x86_64 and aarch64.
ALLOWED = {
    # reading and writing, by far the most frequent
    "read": (0, 63), "write": (1, 64), "pread64": (17, 67), "pwrite64": (18, 68), "lseek": (8, 62), "fstat": (5, 80),
    "futex": (202, 98), "close": (3, 57),
    # files
    "readv": (19, 65), "writev": (20, 66), "preadv": (295, 69), "pwritev": (296, 70), "preadv2": (327, 286),
    "pwritev2": (328, 287), "newfstatat": (262, 79), "statx": (332, 291), "statfs": (137, 43), "fstatfs": (138, 44),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlinkat": (267, 78), "getdents64": (217, 61),
    "getcwd": (79, 17), "unlinkat": (263, 35), "renameat": (264, 38), "renameat2": (316, 276), "mkdirat": (258, 34),
    "ftruncate": (77, 46), "fallocate": (285, 47), "fsync": (74, 82), "fdatasync": (75, 83),
    "fadvise64": (221, 223), "readahead": (187, 213), "sendfile": (40, 71), "copy_file_range": (326, 285),
    "dup": (32, 23), "dup3": (292, 24), "umask": (95, 166), "flock": (73, 32), "close_range": (436, 436),
    "pipe2": (293, 59),
    # waiting
    "ppoll": (271, 73), "pselect6": (270, 72), "eventfd2": (290, 19), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "restart_syscall": (219, 128),
    # memory
    "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "madvise": (28, 233),
    "brk": (12, 214), "msync": (26, 227), "mincore": (27, 232), "membarrier": (324, 283),
    # threads
    "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_getattr": (315, 275), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "getcpu": (309, 168), "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94),
    # signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137), "sigaltstack": (131, 132),
    # the process, its host and the time
    "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176),
    "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150), "getgroups": (115, 158),
    "getpgid": (121, 155), "getsid": (124, 156), "capget": (125, 90), "uname": (63, 160), "sysinfo": (99, 179),
    "getrusage": (98, 165), "getrandom": (318, 278), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "times": (100, 153),
}  # fmt: skip
# Older forms of some of these, which aarch64 lacks.
ALLOWED_X86_64 = {
    "stat": 4, "lstat": 6, "access": 21, "readlink": 89, "unlink": 87, "rename": 82, "mkdir": 83,
    "rmdir": 84, "dup2": 33, "pipe": 22, "poll": 7, "select": 23, "pause": 34, "time": 201, "getpgrp": 111,
    "getrlimit": 97,
}  # fmt: skip
# C libraries try newer calls first and fall back on ENOSYS.
FIRST_OF_NEWER_CALLS = 449  # futex_waitv, Linux 5.16

# By their flags: a file opened for reading must not be truncated, which Landlock prevents only from Linux 6.2. For both
# access modes at once Landlock checks no right at all.
OPENAT, OPEN_X86_64 = (257, 56), 2
WRITE_ONLY, READ_AND_WRITE, TRUNCATE = 0x1, 0x2, 0x200  # of both processors

CLONE, CLONE3, PRLIMIT64 = (56, 220), (435, 435), (302, 261)
CLONE_THREAD = 0x00010000
CLONE_NEW_NAMESPACES = 0x7E020000
# Allowed on the process itself (its number, or 0), by their first argument.
ON_ITSELF: dict[str, tuple[int, int]] = {"kill": (62, 129), "tgkill": (234, 131)}


class Choice(NamedTuple):
    """A call that is allowed with some values of one argument, a number of 32 bits."""

    numbers: tuple[int, int]
    argument: int
    values: tuple[int, ...]


CHOICES = {
    # Descriptors, flags, locks and pipe sizes. F_SETOWN and F_SETSIG would send signals to any process of the user.
    "fcntl": Choice((72, 25), 1, (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),
    # TCGETS, FIONREAD, FIONCLEX, FIOCLEX. FIOSETOWN and SIOCSPGRP do as F_SETOWN.
    "ioctl": Choice((16, 29), 1, (0x5401, 0x541B, 0x5450, 0x5451)),
    # Names of threads, and reads. PR_SET_PDEATHSIG would let the process outlive the worker.
    "prctl": Choice((157, 167), 0, (2, 3, 15, 16, 39)),
}


class Processor(NamedTuple):
    """A processor: its audit number in the kernel, and its column of the tables."""

    audit: int
    column: int


PROCESSORS = {"x86_64": Processor(0xC000003E, 0), "aarch64": Processor(0xC00000B7, 1)}


def unavailable() -> str | None:
    """Return the reason why filters are unavailable here, else None."""
    if platform.machine() not in PROCESSORS:
        return f"unknown for {platform.machine()}"
    return None if libc.takes_filters() else "not in this kernel"


def restrict() -> None:
    """Filter the calls of this thread and of all that it starts. Irrevocable. Needs `libc.forbid_new_privileges`.

    Raises:
        OSError: rejected by the kernel.
    """
    libc.apply_filter(b"".join(_program(PROCESSORS[platform.machine()], os.getpid())))


def _program(processor: Processor, itself: int) -> Iterator[bytes]:
    refuse, allow = _step(RETURN, ERRNO | errno.EPERM), _step(RETURN, ALLOW)
    unknown = _step(RETURN, ERRNO | errno.ENOSYS)
    column = processor.column
    yield _step(LOAD, ARCHITECTURE)
    yield _step(EQUAL, processor.audit, 1, 0)
    yield refuse
    yield _step(LOAD, NUMBER)
    allowed = [numbers[column] for numbers in ALLOWED.values()]
    if processor == PROCESSORS["x86_64"]:
        yield _step(AT_LEAST, X32, 0, 1)
        yield refuse
        allowed += ALLOWED_X86_64.values()
    for number in allowed:
        yield _step(EQUAL, number, 0, 1)
        yield allow
    yield from _opening(OPENAT[column], 2, allow, refuse)
    if processor == PROCESSORS["x86_64"]:
        yield from _opening(OPEN_X86_64, 1, allow, refuse)
    # clone3 takes its arguments by address, out of reach of a filter. libc falls back on clone.
    for operation, number in ((EQUAL, CLONE3[column]), (AT_LEAST, FIRST_OF_NEWER_CALLS)):
        yield _step(operation, number, 0, 1)
        yield unknown
    yield _step(EQUAL, CLONE[column], 0, 5)
    yield _argument(0)
    yield _step(ANY_BIT, CLONE_NEW_NAMESPACES, 1, 0)
    yield _step(ANY_BIT, CLONE_THREAD, 1, 0)
    yield refuse
    yield allow
    for numbers in ON_ITSELF.values():
        yield from _on_itself(numbers[column], itself, allow, refuse)
    for choice in CHOICES.values():
        yield _step(EQUAL, choice.numbers[column], 0, 2 * len(choice.values) + 2)
        yield _argument(choice.argument)
        for value in choice.values:
            yield _step(EQUAL, value, 0, 1)
            yield allow
        yield refuse
    # Its own limits may be read: the address of new ones is 0, in both halves.
    yield _step(EQUAL, PRLIMIT64[column], 0, 8)
    yield _argument(2)
    yield _step(EQUAL, 0, 0, 6)
    yield _argument(2, half=1)
    yield _step(EQUAL, 0, 0, 4)
    yield _argument(0)
    yield _step(EQUAL, itself, 1, 0)
    yield _step(EQUAL, 0, 0, 1)
    yield allow
    yield refuse


def _opening(number: int, flags: int, allow: bytes, refuse: bytes) -> Iterator[bytes]:
    """Allow a call that opens a file, unless it truncates one for reading. `flags` is the index of that argument."""
    yield _step(EQUAL, number, 0, 7)
    yield _argument(flags)
    yield _step(ANY_BIT, WRITE_ONLY, 0, 1)
    yield _step(ANY_BIT, READ_AND_WRITE, 3, 2)
    yield _step(ANY_BIT, READ_AND_WRITE, 1, 0)
    yield _step(ANY_BIT, TRUNCATE, 1, 0)
    yield allow
    yield refuse


def _on_itself(number: int, itself: int, allow: bytes, refuse: bytes) -> Iterator[bytes]:
    """Allow a call on this process, by its first argument. Other calls continue after it."""
    yield _step(EQUAL, number, 0, 5)
    yield _argument(0)
    yield _step(EQUAL, itself, 1, 0)
    yield _step(EQUAL, 0, 0, 1)
    yield allow
    yield refuse


def _argument(index: int, half: int = 0) -> bytes:
    return _step(LOAD, ARGUMENTS + 8 * index + 4 * half)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)
