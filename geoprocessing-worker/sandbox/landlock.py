"""What the process that opens a stranger's file can still reach: its own files, the libraries, nothing else.

Each layer is used where the kernel has it. Which ones are on is said at the start and by the health check;
`REQUIRE_SANDBOX` makes a worker refuse to run without one.
"""

import functools
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from py_landlock import AccessFs, Landlock, LandlockError, get_abi_version

from geoprocessing_worker.sandbox import libc, seccomp

# Where shared libraries and what finds them are; of the rest of /usr and /etc a child needs nothing.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")
# How much of its address space the process has used; of the rest of /proc it sees nothing.
OWN_SIZE = (Path("/proc/self/statm"),)
DEVICES = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/urandom"))
READ = AccessFs.READ_FILE | AccessFs.READ_DIR
WRITE = READ | AccessFs.WRITE_FILE | AccessFs.TRUNCATE | AccessFs.MAKE_REG | AccessFs.REMOVE_FILE
M_PERTURB = -6  # from malloc.h
OF_FILES = AccessFs.READ_FILE | AccessFs.WRITE_FILE | AccessFs.TRUNCATE


@dataclass(frozen=True)
class AllowedPaths:
    """The paths of one job: what its process may read, where it may write, and where it may only see what there is."""

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    listable: tuple[Path, ...] = ()


NO_PATHS = AllowedPaths()


@dataclass(frozen=True)
class Layer:
    """A wall, and why it is not there; `missing` is None where it stands."""

    name: str
    missing: str | None

    def __str__(self) -> str:
        return self.name if self.missing is None else f"{self.name}: off ({self.missing})"


@functools.cache
def layers() -> tuple[Layer, ...]:
    """The walls that children of this process get. Found once, since finding libc starts another program."""
    try:
        abi, missing = int(get_abi_version()), None
    except LandlockError as error:
        abi, missing = 0, str(error)

    def since(version: int) -> str | None:
        return missing if abi == 0 else None if abi >= version else f"Landlock {abi}, needs {version}"

    return (
        Layer("limits", None),
        Layer("no_new_privs", None),
        Layer("files", since(1)),
        Layer("tcp", since(4)),
        Layer("signals", since(6)),
        Layer("system_calls", seccomp.unavailable()),
    )


def missing_layers() -> tuple[Layer, ...]:
    """Those that this kernel or processor does not have."""
    return tuple(layer for layer in layers() if layer.missing is not None)


def prepare() -> None:
    """Find out, once for all processes that are forked from this one, what `restrict` needs: a millisecond of each."""
    layers()
    _libraries()


def restrict(reach: AllowedPaths) -> None:
    """Put up all walls round this process, for good.

    Raises:
        OSError, LandlockError: a wall that should stand could not be put up; nothing may be opened then.
    """
    on = {layer.name for layer in layers() if layer.missing is None}
    hand_out_zeros()
    libc.forbid_new_privileges()
    if reach.writable:
        os.environ["TMPDIR"] = str(reach.writable[0])
    if "files" in on:
        # Not strict: of an older Landlock all that it knows is asked for. TCP and signals are shut by asking nothing.
        walls = Landlock(strict=False)
        rules = (
            (_libraries(), READ),
            (OWN_SIZE, READ),
            (DEVICES, WRITE),
            (reach.readable, READ),
            (reach.writable, WRITE),
            (reach.listable, AccessFs.READ_DIR),
        )
        for paths, access in rules:
            for path in _present(paths):
                # The kernel takes no rights of folders for a file.
                walls.add_path_rule(path, access=access if path.is_dir() else access & OF_FILES)
        walls.apply()
    if "system_calls" in on:
        seccomp.restrict()


def hand_out_zeros() -> None:
    """Have this process's `malloc` give zeros, since decoders do not always fill what they were given.

    libtiff takes libdeflate's "more than fits" for success, and libdeflate then leaves up to 257 bytes as they were: a
    picture of small blocks would show what this process had in memory before. Only glibc knows how.
    """
    libc.set_malloc_option(M_PERTURB, 0xFF)  # it fills with the complement


@functools.cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    packages = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return (*map(Path, LIBRARIES), *map(Path, packages), Path(__file__).resolve().parents[1])


def _present(paths: tuple[Path, ...]) -> list[Path]:
    return [path for path in dict.fromkeys(paths) if path.exists()]
