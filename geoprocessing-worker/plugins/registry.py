"""The task types of this worker: installed, enabled and usable, or broken with the reason."""

from __future__ import annotations

import functools
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError, JobError
from geoprocessing_worker.handlers import GROUP, INTERFACE, Payload, TaskHandler
from geoprocessing_worker.sandbox.landlock import AllowedPaths

# Share of all stages up to which the last one is short. Ours check and package in a sixth.
SHORT_LAST_STAGE = 0.2

# Percent of the whole after download, the handler's stages, and upload: about their shares for a mosaic of 100 MB.
DOWNLOADED, PROCESSED, UPLOADED = 25.0, 85.0, 99.0


@dataclass(frozen=True)
class BoundHandler:
    """A usable handler, with the operator's defaults for its payload.

    Attributes:
        handler: of the package.
        defaults: for keys missing in a payload.
        libraries: folders with the modules of the work, besides this worker's own.
        import_roots: parents of these folders, which Python lists to find the package.
        spans: begin and end of each stage, in percent of the whole.
    """

    handler: TaskHandler
    defaults: Payload
    libraries: tuple[Path, ...]
    import_roots: tuple[Path, ...]
    spans: Mapping[str, tuple[float, float]]

    @property
    def name(self) -> str:
        """The task type."""
        return self.handler.task_type.name

    @property
    def closing(self) -> str | None:
        """The last stage, if it is short enough for the next job to be claimed at its beginning."""
        *_, (name, share) = self.handler.stages.items()
        return name if share <= SHORT_LAST_STAGE * sum(self.handler.stages.values()) else None

    def reach(self, source: Path | None, folder: Path) -> AllowedPaths:
        """Return the paths for a child: an input file or None, and an output folder."""
        return AllowedPaths((*([] if source is None else [source]), *self.libraries), (folder,), self.import_roots)

    def options(self, payload: Mapping[str, Any]) -> Payload:
        """Return the options of a job.

        Raises:
            JobError: as `Payload.from_payload`.
        """
        return self.handler.payload.from_payload(payload, self.defaults)


@dataclass(frozen=True)
class Broken:
    """An installed handler that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Tasks:
    """The usable and broken handlers, by task type."""

    usable: Mapping[str, BoundHandler]
    broken: tuple[Broken, ...] = ()

    def __iter__(self) -> Iterator[BoundHandler]:
        return iter(self.usable.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The task types to claim."""
        return tuple(self.usable)

    @property
    def problems(self) -> list[str]:
        """One line for each handler that cannot be used."""
        return [f"{broken.name} cannot be used: {broken.reason}" for broken in self.broken]

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that the fork server imports once."""
        return tuple(dict.fromkeys(module for task in self for module in task.handler.preload))


def load(settings: Settings, only: Collection[str] | None = None) -> Tasks:
    """Import the installed handlers that are enabled.

    Args:
        settings: have the defaults, and the enabled types in `WORKER_TASK_TYPES`.
        only: these instead of `WORKER_TASK_TYPES`.

    Raises:
        ConfigurationError: an enabled type is not installed, or a setting is not valid in a payload.
    """
    installed = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    enabled = settings.worker_task_types if only is None else only
    unknown = [name for name in enabled if name not in {point.name for point in installed}]
    if unknown:
        known = ", ".join(point.name for point in installed) or "none"
        where = "WORKER_TASK_TYPES: " if only is None else ""
        near = get_close_matches(unknown[0], [point.name for point in installed], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(f"{where}no handler is installed for {', '.join(unknown)}; {hint}installed: {known}")
    chosen = [point for point in installed if not enabled or point.name in enabled]
    times = Counter(point.name for point in chosen)
    usable: dict[str, BoundHandler] = {}
    broken: list[Broken] = []
    for point in chosen:
        try:
            handler = _checked(point, times[point.name])
        except Exception as error:  # noqa: BLE001 - the import of a plug-in may raise anything
            broken.append(Broken(point.name, f"{type(error).__name__}: {error}"))
        else:
            usable[point.name] = bind(handler, settings, *_libraries(point, handler))
    return Tasks(usable, tuple(dict.fromkeys(broken)))


def bind(
    handler: TaskHandler, settings: Settings, libraries: tuple[Path, ...] = (), import_roots: tuple[Path, ...] = ()
) -> BoundHandler:
    """Return a handler with the operator's defaults.

    Raises:
        ConfigurationError: a setting is not valid in its payload.
    """
    return BoundHandler(handler, _defaults(handler, settings), libraries, import_roots, _spans(handler.stages))


_COSTLY = frozenset({"timed_out", "out_of_memory", "output_too_large"})


def advised(error: JobError, handler: TaskHandler | None) -> JobError:
    """Return the error, with the handler's advice if the job exceeded a limit."""
    is_costly = error.code in _COSTLY or (error.code == "too_large" and error.detail.get("limit") == "memory")
    if handler is None or handler.lighter is None or not is_costly:
        return error
    return JobError(error.code, f"{error.message} {handler.lighter}", error.error_class, error.detail)


def _checked(point: EntryPoint, times: int) -> TaskHandler:
    if times > 1:
        raise TypeError(f"{times} packages have a handler for it")
    handler = point.load()
    if not isinstance(handler, TaskHandler):
        raise TypeError(f"{point.value} is no TaskHandler")
    if handler.interface != INTERFACE:
        raise TypeError(f"it was written for version {handler.interface} of the handlers' interface, not {INTERFACE}")
    if handler.task_type.name != point.name:
        raise TypeError(f"its entry point is {point.name}, its task type {handler.task_type.name}")
    if not handler.stages or any(share <= 0 for share in handler.stages.values()):
        raise TypeError("it has no stages, or one whose share is not above 0")
    return handler


def _defaults(handler: TaskHandler, settings: Settings) -> Payload:
    defaults = handler.payload()
    for name, setting in handler.settings.items():
        alias = handler.payload.model_fields[name].alias or name
        try:
            # Checked like a payload now, or it would be blamed on a user later.
            defaults = handler.payload.from_payload({alias: getattr(settings, setting)}, defaults)
        except JobError as error:
            raise ConfigurationError(f"{setting.upper()}: {error.message}") from None
    return defaults


def _spans(stages: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    whole = sum(stages.values())
    ends = [DOWNLOADED + (PROCESSED - DOWNLOADED) * part / whole for part in accumulate(stages.values(), initial=0.0)]
    own = dict(zip(stages, pairwise(ends), strict=True))
    return {"download": (0.0, DOWNLOADED), **own, "upload": (PROCESSED, UPLOADED)}


def _libraries(point: EntryPoint, handler: TaskHandler) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the folders of the handler's packages with their metadata, and the parents of these folders.

    Only those outside of this worker's own libraries: editable installs, or those in a separate folder.
    """
    names = {reference.partition(":")[0].partition(".")[0] for reference in (point.value, handler.work)}
    packages = sorted(names.union(*map(_packages, handler.needs)))
    folders = [Path(folder).resolve() for package in packages for folder in _folders(package)]
    elsewhere = [place for place in folders if not any(place.is_relative_to(known) for known in _own_libraries())]
    beside = []
    if elsewhere and point.dist is not None and any(file.match("*.dist-info/*") for file in point.dist.files or ()):
        beside.append(Path(str(point.dist.locate_file(""))).resolve())
    roots = dict.fromkeys(place.parent for place in elsewhere)
    return tuple(dict.fromkeys(elsewhere + beside)), tuple(roots)


@functools.cache
def _own_libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return (Path(paths["purelib"]).resolve(), Path(paths["platlib"]).resolve(), Path(__file__).resolve().parents[1])


def _packages(distribution_name: str) -> list[str]:
    """Return the top-level packages of an installed distribution, if it lists them."""
    try:
        return (distribution(distribution_name).read_text("top_level.txt") or "").split()
    except PackageNotFoundError:
        return []


def _folders(package: str) -> list[str]:
    spec = find_spec(package)
    if spec is None:
        return []
    return list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
