"""Calls of the C library and the kernel without a Python binding."""

import ctypes
import errno
import os
import signal

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8  # struct sock_filter

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide_memory() -> None:
    """Keep this process's memory and initial environment from other processes of the same user."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_new_privileges() -> None:
    """Keep programs started later from gaining rights, by set-user-id or otherwise. Irrevocable.

    Raises:
        OSError: rejected by the kernel.
    """
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def takes_filters() -> bool:
    """Return whether the kernel has seccomp filters: it answers EFAULT to a null program."""
    ctypes.set_errno(0)
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def apply_filter(program: bytes) -> None:
    """Apply a seccomp filter to this thread and all that it starts. Irrevocable. Needs `forbid_new_privileges`.

    Args:
        program: BPF instructions.

    Raises:
        OSError: rejected by the kernel.
    """
    structure = _Program(len(program) // _INSTRUCTION_BYTES, program)
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(structure), 0, 0))


def set_malloc_option(option: int, value: int) -> None:
    """Set an option of mallopt(3). No effect without glibc."""
    setter = getattr(_libc, "mallopt", None)
    if setter is not None:
        setter(option, value)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
