"""The restrictions of the child process: it can reach its own files and the libraries only.

Each layer is applied where the kernel has it. The log at the start and the health check list the layers.
With `REQUIRE_SANDBOX` a worker does not start if one is missing.
"""

import functools
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from py_landlock import AccessFs, Landlock, LandlockError, get_abi_version

from geoprocessing_worker.sandbox import libc, seccomp

# Shared libraries and their index. A child needs nothing else from /usr and /etc.
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime")
# The process's own memory use. The rest of /proc is hidden.
OWN_SIZE = (Path("/proc/self/statm"),)
DEVICES = (Path("/dev/null"), Path("/dev/zero"), Path("/dev/urandom"))
READ = AccessFs.READ_FILE | AccessFs.READ_DIR
WRITE = READ | AccessFs.WRITE_FILE | AccessFs.TRUNCATE | AccessFs.MAKE_REG | AccessFs.REMOVE_FILE
M_PERTURB = -6  # from malloc.h
OF_FILES = AccessFs.READ_FILE | AccessFs.WRITE_FILE | AccessFs.TRUNCATE


@dataclass(frozen=True)
class AllowedPaths:
    """The paths of one job: to read, to write into, and to list only."""

    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    listable: tuple[Path, ...] = ()


NO_PATHS = AllowedPaths()


@dataclass(frozen=True)
class Layer:
    """A sandbox layer. `missing` is the reason for its absence, else None."""

    name: str
    missing: str | None

    def __str__(self) -> str:
        return self.name if self.missing is None else f"{self.name}: off ({self.missing})"


@functools.cache
def layers() -> tuple[Layer, ...]:
    """Return the layers for children of this process. Cached, since finding libc starts another program."""
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
    """Return the layers that this kernel or processor lacks."""
    return tuple(layer for layer in layers() if layer.missing is not None)


def prepare() -> None:
    """Fill the caches of `restrict` before a fork, which saves each child a millisecond."""
    layers()
    _libraries()


def restrict(reach: AllowedPaths) -> None:
    """Apply all layers to this process, irrevocably.

    Raises:
        OSError, LandlockError: a layer of this kernel could not be applied. The process must not open anything.
    """
    active = {layer.name for layer in layers() if layer.missing is None}
    hand_out_zeros()
    libc.forbid_new_privileges()
    if reach.writable:
        os.environ["TMPDIR"] = str(reach.writable[0])
    if "files" in active:
        # Not strict: an older Landlock applies the rights that it has. TCP and signals are denied without a rule.
        ruleset = Landlock(strict=False)
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
                # The kernel rejects folder rights for a file.
                ruleset.add_path_rule(path, access=access if path.is_dir() else access & OF_FILES)
        ruleset.apply()
    if "system_calls" in active:
        seccomp.restrict()


def hand_out_zeros() -> None:
    """Make `malloc` of this process return zeros, since decoders do not always fill their buffers.

    libtiff takes libdeflate's "insufficient space" for success. libdeflate then leaves up to 257 bytes unwritten, so a
    picture of small blocks would show older memory of this process. Works with glibc only.
    """
    libc.set_malloc_option(M_PERTURB, 0xFF)  # it fills with the complement


@functools.cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    packages = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return (*map(Path, LIBRARIES), *map(Path, packages), Path(__file__).resolve().parents[1])


def _present(paths: tuple[Path, ...]) -> list[Path]:
    return [path for path in dict.fromkeys(paths) if path.exists()]
