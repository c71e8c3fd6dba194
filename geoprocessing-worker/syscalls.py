"""A filter on system calls: no sockets, no other programs or processes, nobody else's memory.

Landlock leaves UDP and Unix sockets open, and lets a process fork; a fork that leaves its session outlives the kill of
its group. The filter is a hundred comparisons of a number, written out here: Python's bindings of libseccomp need that
library on the system, and the best known one has had no release since 2021.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from typing import NamedTuple

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 38, 22  # from linux/prctl.h
SECCOMP_MODE_FILTER = 2
ALLOW, ERRNO = 0x7FFF0000, 0x00050000

# Of BPF: load a word of what the kernel tells of the call; compare; return.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data; the low half of the argument
CLONE_THREAD = 0x00010000
X32 = 0x40000000  # from here on x86_64 numbers the calls of another convention

# Refused outright. The numbers are the kernel's, for x86_64 and aarch64.
REFUSED = {
    # the network, by all its doors
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # other programs and processes
    "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157),
    "setpgid": (109, 154), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    # others' files: Landlock asks nobody who changes their rights, owner, times or attributes
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "fchown": (93, 55), "fchownat": (260, 54),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "file_setattr": (469, 469), "mknodat": (259, 33),
    # memory that outlives the process, or that no limit counts
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    # others' memory
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    # doors of the kernel that nothing here has a use for
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_by_handle_at": (304, 265),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fsmount": (432, 432),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "delete_module": (176, 106),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116), "acct": (163, 89),
    "quotactl": (179, 60), "fanotify_init": (300, 262), "personality": (135, 92),
}  # fmt: skip
# Of x86_64 alone; others have only what came later.
REFUSED_X86_64 = {
    "fork": 57, "vfork": 58, "chmod": 90, "chown": 92, "lchown": 94, "utime": 132, "utimes": 235, "futimesat": 261,
    "mknod": 133, "iopl": 172, "ioperm": 173,
}  # fmt: skip
# Allowed on the process itself (its number, or 0), by their first argument.
ON_ITSELF: dict[str, tuple[int, int]] = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
CLONE = (56, 220)
CLONE3 = (435, 435)


class Processor(NamedTuple):
    """A kind of processor: the kernel's word for it, and which column of the tables is its."""

    audit: int
    column: int


PROCESSORS = {"x86_64": Processor(0xC000003E, 0), "aarch64": Processor(0xC00000B7, 1)}


def unavailable() -> str | None:
    """Why there can be no filter here; None when there can."""
    if platform.machine() not in PROCESSORS:
        return f"not known for {platform.machine()}"
    # Asked with no program the kernel answers EFAULT where it could take one.
    ctypes.set_errno(0)
    _libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, None, 0, 0)
    return None if ctypes.get_errno() == errno.EFAULT else "not in this kernel"


def no_new_privileges() -> None:
    """No program started from here on gains rights, by set-user-id or otherwise. Cannot be taken back.

    Raises:
        OSError: the kernel refused.
    """
    _check(_libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def restrict() -> None:
    """Put the filter on this thread and all that it will start. Cannot be taken back; needs `no_new_privileges`.

    Raises:
        OSError: the kernel refused.
    """
    program = b"".join(_program(PROCESSORS[platform.machine()], os.getpid()))
    code = ctypes.create_string_buffer(program)
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    _check(_libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0))


def _program(processor: Processor, itself: int) -> Iterator[bytes]:
    refuse = _step(RETURN, ERRNO | errno.EPERM)
    yield _step(LOAD, ARCHITECTURE)
    yield _step(EQUAL, processor.audit, 1, 0)
    yield refuse
    yield _step(LOAD, NUMBER)
    if processor == PROCESSORS["x86_64"]:
        yield _step(AT_LEAST, X32, 0, 1)
        yield refuse
    refused = [numbers[processor.column] for numbers in REFUSED.values()]
    for number in refused + (list(REFUSED_X86_64.values()) if processor == PROCESSORS["x86_64"] else []):
        yield _step(EQUAL, number, 0, 1)
        yield refuse
    # It takes its arguments by address, where no filter can look; libc falls back on clone when it is not there.
    yield _step(EQUAL, CLONE3[processor.column], 0, 1)
    yield _step(RETURN, ERRNO | errno.ENOSYS)
    yield _step(EQUAL, CLONE[processor.column], 0, 4)
    yield _step(LOAD, FIRST_ARGUMENT)
    yield _step(ANY_BIT, CLONE_THREAD, 1, 0)
    yield refuse
    yield _step(RETURN, ALLOW)
    for numbers in ON_ITSELF.values():
        yield _step(EQUAL, numbers[processor.column], 0, 5)
        yield _step(LOAD, FIRST_ARGUMENT)
        yield _step(EQUAL, itself, 2, 0)
        yield _step(EQUAL, 0, 1, 0)
        yield refuse
        yield _step(RETURN, ALLOW)
    yield _step(RETURN, ALLOW)


def _step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", operation, if_true, if_false, value)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
