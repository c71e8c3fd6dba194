"""A worker offers the installed, enabled and usable task types, and reports the others."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeGuard

import pytest

from geoprocessing_worker.config import Settings
from geoprocessing_worker.errors import ConfigurationError, ErrorClass, JobError
from geoprocessing_worker.handlers import GEOTIFF_TYPES, TaskResult
from geoprocessing_worker.plugins import registry
from geoprocessing_worker.plugins.calls import PERFORM
from geoprocessing_worker.plugins.processes import check_defaults, make_sandbox
from geoprocessing_worker.plugins.registry import load
from geoprocessing_worker.render.options import RenderOptions
from tests.support.packages import install

ROOT = Path(__file__).resolve().parents[2]


def worker(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **({"PYTHONPATH": str(path)} if path else {})}
    command = [sys.executable, "-m", "geoprocessing_worker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, cwd="/")


def test_the_workers_own_handlers_are_found_as_any_others_are() -> None:
    """They stand in the package's metadata, and each is named after its task type."""
    loaded = registry.load(Settings())
    assert "geotiff_to_png" in loaded.names
    assert loaded.broken == ()
    for task in loaded:
        assert next(iter(task.spans)) == "download"
        assert list(task.spans)[-1] == "upload"
        begins = [begin for begin, _ in task.spans.values()]
        ends = [end for _, end in task.spans.values()]
        assert begins[1:] == pytest.approx(ends[:-1])


def test_the_operators_settings_are_the_defaults_of_a_payload() -> None:
    task = registry.load(Settings(max_image_size=100, compression_quality=7), only=["geotiff_to_png"]).usable[
        "geotiff_to_png"
    ]
    options = task.options({"quality": 9})
    assert isinstance(options, RenderOptions)
    assert (options.max_size, options.quality) == (100, 9)


async def test_a_setting_that_is_no_default_for_a_payload_is_named() -> None:
    """Checked at the start, so that no uploader is blamed later, and in a child, since PROJ parses it."""
    settings = Settings(coordinate_system="EPSG:999999")
    with pytest.raises(ConfigurationError, match=r"^COORDINATE_SYSTEM: Unknown coordinate system"):
        await check_defaults(settings, registry.load(settings))
    usual = Settings(coordinate_system="EPSG:3857", max_image_size=100)
    await check_defaults(usual, registry.load(usual))


def test_only_enabled_task_types_are_offered_and_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "thinker_a", lines="raise SystemExit('imported')"))
    assert registry.load(Settings(worker_task_types="geotiff_to_png")).names == ("geotiff_to_png",)


def test_a_task_type_without_a_handler_is_refused_with_the_installed_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"WORKER_TASK_TYPES: .* read_tea_leaves; installed: .*geotiff_to_png"):
        registry.load(Settings(worker_task_types="read_tea_leaves"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"lines": "import nothing_of_this_name"}, "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ({"interface": "99"}, "it was written for version 99 of the handlers' interface"),
        ({"entry_point": "dream"}, "its entry point is dream, its task type think"),
        ({"task_type": "Think!", "entry_point": "think"}, "String should match pattern"),
    ],
    ids=["import", "interface", "name", "type"],
)
def test_an_unusable_handler_is_left_out_and_reported(
    wrong: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"thinker_{abs(hash(reason))}"
    monkeypatch.syspath_prepend(install(tmp_path, package, **wrong))
    loaded = registry.load(Settings())
    assert "geotiff_to_png" in loaded.names
    assert not {"think", "dream"} & set(loaded.names)
    (broken,) = loaded.broken
    assert reason in broken.reason


def test_two_packages_for_one_task_type_are_no_offer_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "thinker_one")
    monkeypatch.syspath_prepend(install(tmp_path, "thinker_two"))
    loaded = registry.load(Settings())
    assert "think" not in loaded.names
    assert [broken.reason for broken in loaded.broken] == ["TypeError: 2 packages have a handler for it"]


@pytest.mark.parametrize(
    ("task_type", "payload", "words"),
    [
        ("geotiff_to_png", '{"maxsize": 100}', "Unknown key 'maxsize'. Did you mean 'maxSize'?"),
        ("geotiff_to_png", '{"max_size": 100}', "Did you mean 'maxSize'?"),
        ("geotiff_to_tiles", '{"thumbnailSize": 100}', "Unknown key 'thumbnailSize'."),
        ("geotiff_to_png", "[" * 60_000, "The payload is not JSON"),
        ("geotiff_to_png", '{"generateThumbnails": "no"}', "generateThumbnails was 'no': allowed: true or false"),
        ("geotiff_to_png", '{"page": 1, "maxSize": 2, "page": 2}', "the key 'page' occurs twice"),
        ("geotiff_info", '{"sourceUrl": "https://example.org/a.tif"}', "sourceUrl has no use here: convert reads "),
        ("geotiff_to_png", '{"coordinateSystem": "EPSG:1"}', "Unknown coordinate system 'EPSG:1'"),
        ("geotiff_info", '{"zzz": null}', "Unknown key 'zzz'. Known: page, sourceCrs, sourceUrl."),
    ],
)
def test_convert_refuses_a_wrong_payload(task_type: str, payload: str, words: str, tmp_path: Path) -> None:
    """As the API does when a job is made, with the nearest known key, and exits with 2. A bad file ends with 1."""
    source = tmp_path / "map.tif"
    source.write_bytes(b"II*\0")
    ended = worker("convert", str(source), "--task", task_type, "--payload", payload, "-o", str(tmp_path / "out"))
    assert ended.returncode == 2
    assert "❌ bad_crs: " in ended.stderr or "❌ invalid_payload: " in ended.stderr
    assert words in ended.stderr
    assert not list(tmp_path.glob("out/*"))
    assert worker("convert", str(source), "--task", task_type, "-o", str(tmp_path / "out")).returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [("convert", "map.tif", "--task", "geotiff_to_pgn"), ("tasks", "geotiff_to_pgn"), ("verify", "geotiff_to_pgn")],
)
def test_a_task_type_that_a_command_names_is_not_blamed_on_a_setting(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    """The error names the nearest installed task type, and not WORKER_TASK_TYPES."""
    (tmp_path / "map.tif").touch()
    ended = worker(*(str(tmp_path / one) if one == "map.tif" else one for one in arguments))
    assert ended.returncode != 0
    assert "no handler is installed for geotiff_to_pgn; did you mean geotiff_to_png?" in ended.stderr
    assert "WORKER_TASK_TYPES" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "code", "advice"),
    [
        ("geotiff_to_png", "timed_out", "Try a smaller maxSize, or add overviews to the file."),
        ("geotiff_to_png", "out_of_memory", "Try a smaller maxSize, or add overviews to the file."),
        ("geotiff_to_tiles", "output_too_large", "Try a smaller maxZoom."),
        ("geotiff_to_cog", "timed_out", None),
        ("geotiff_info", "out_of_memory", None),
        ("geotiff_to_png", "not_a_tiff", None),
    ],
)
def test_an_error_advises_only_options_that_its_kind_of_job_has(name: str, code: str, advice: str | None) -> None:
    """Only pictures get the advice of a smaller `maxSize`. Errors unrelated to size get none."""
    handler = load(Settings()).usable[name].handler
    error = JobError(code, "It ended.", ErrorClass.TIMEOUT, {"limit_seconds": 1})
    told = registry.advised(error, handler)
    assert told.message == ("It ended." if advice is None else f"It ended. {advice}")
    assert (told.code, told.detail) == (error.code, error.detail)


def test_no_handler_advises_an_option_that_its_payload_does_not_have() -> None:
    for task in load(Settings()):
        options = {field.alias for field in task.handler.payload.model_fields.values()}
        named = set(re.findall(r"\b[a-z]+[A-Z]\w*", task.handler.lighter or ""))
        assert named <= options


def test_no_message_of_a_worker_promises_another_try() -> None:
    """Whether a job is tried again is for the server to decide: the last attempt of a job has the same messages."""
    for path in (ROOT / "geoprocessing-worker").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documents = {id(vars(node.body[0])["value"]) for node in ast.walk(tree) if _has_docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                assert not re.search(r"(will|is going to) be (tried|started|done) again|will retry", node.value), path


def _has_docstring(node: ast.AST) -> TypeGuard[ast.Module | ast.ClassDef | ast.FunctionDef]:
    return (
        isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and bool(node.body)
        and isinstance(node.body[0], ast.Expr)
    )


def test_an_invalid_payload_is_named_with_the_allowed_values() -> None:
    task = registry.load(Settings(), only=["geotiff_to_png"]).usable["geotiff_to_png"]
    with pytest.raises(JobError, match="quality was 101: Input should be less than or equal to 100"):
        task.options({"quality": 101})


def test_a_task_type_is_printed_as_the_api_accepts_it(tmp_path: Path) -> None:
    ended = worker("tasks", "--json", "think", path=install(tmp_path, "thinker"))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "name": "think",
        "input": "required",
        "outputs": [{"suffix": ".txt", "contentType": "text/plain", "maxBytes": 9, "formats": None}],
        "timeoutSeconds": 3600,
        "leaseSeconds": 60,
        "maxAttempts": 5,
        "backoffSeconds": [2.0, 10.0, 60.0, 300.0, 900.0],
        "maxConcurrentRuns": None,
        "rateLimit": None,
        "paused": False,
        "defaultPriority": 0,
        "payloadSchema": {
            "type": "object",
            "properties": {
                "sourceUrl": {
                    "type": ["string", "null"],
                    "description": "address of the file, instead of an upload",
                }
            },
            "additionalProperties": False,
        },
        "inputTypes": list(GEOTIFF_TYPES),
    }


def test_only_a_short_last_stage_lets_the_next_job_in() -> None:
    """Of work that has one stage, or a long last one, no part may pass for its end."""
    assert {task.name: task.closing for task in load(Settings())} == {
        "geotiff_to_png": "package",
        "geotiff_to_cog": "check",
        "geotiff_to_tiles": "package",
        "geotiff_info": None,
    }


def test_there_are_as_many_children_as_the_operator_allows() -> None:
    """One more would have more memory than there is."""
    settings = Settings(concurrent_jobs=3)
    assert make_sandbox(settings, load(settings), PERFORM, TaskResult).most == 3


def test_verify_runs_every_handler_in_the_sandbox_and_lists_its_needs(tmp_path: Path) -> None:
    """A handler that reads a foreign file fails, and so does one with an undeclared output."""
    (tmp_path / "secret").touch()
    folder = tmp_path / "installed"
    install(folder, "thinker_well", task_type="think", needs=("numpy", "no-such-thing"))
    install(folder, "thinker_wide", task_type="peep", self_test=f"open({str(tmp_path / 'secret')!r})")
    install(folder, "thinker_odd", task_type="dream", suffix=".exe")
    ended = worker("verify", "--json", "think", "peep", "dream", "geotiff_to_png", path=folder)
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["geotiff_to_png"]["usable"], told
    assert told["think"] == {
        "usable": False,
        "message": "made thought.txt of a file of its own",
        "needs": {"numpy": told["think"]["needs"]["numpy"], "no-such-thing": None},
    }
    assert not told["peep"]["usable"]
    assert "PermissionError" in ended.stderr
    assert "undeclared_output" in told["dream"]["message"]


def test_verify_ends_well_where_all_is_well() -> None:
    ended = worker("verify", "geotiff_to_png")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("✅ geotiff_to_png: made out.png")
    assert "needs cmap" in ended.stdout


def test_convert_does_any_kind_of_job(tmp_path: Path) -> None:
    """`--task` runs a handler of another package. The sandbox lets it read its package, wherever that lies."""
    from tests.support.rasters import Tiff, quarters

    source = Tiff(quarters(16)).write(tmp_path / "map.tif")
    folder = install(tmp_path / "installed", "thinker")
    ended = worker("convert", str(source), "--task", "think", "-o", str(tmp_path / "out"), path=folder)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out" / "map.txt").read_text() == "a thought"


def test_an_editable_package_works_in_the_sandbox(tmp_path: Path) -> None:
    """The code of the package and of its dependency is in checkouts, their metadata elsewhere."""
    importing = "from neededpart.part import PART; assert PART"
    installed = install(tmp_path / "installed", "thinker", self_test=importing, needs=("needed-part",))
    checkout, other = tmp_path / "checkout", tmp_path / "other"
    checkout.mkdir()
    (installed / "thinker").rename(checkout / "thinker")
    (other / "neededpart").mkdir(parents=True)
    (other / "neededpart" / "__init__.py").touch()
    (other / "neededpart" / "part.py").write_text("PART = 1")
    facts = installed / "needed_part-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: needed-part\nVersion: 1\n")
    (facts / "top_level.txt").write_text("neededpart\n")
    ended = worker("verify", "think", path=Path(f"{installed}:{checkout}:{other}"))
    assert ended.stdout.startswith("✅ think"), ended.stdout + ended.stderr


def test_modules_that_the_sandbox_cannot_import_are_named(tmp_path: Path) -> None:
    """It can be imported without them, so that only `verify` finds out."""
    checkout = tmp_path / "checkout"
    (checkout / "hiddenpart").mkdir(parents=True)
    (checkout / "hiddenpart" / "__init__.py").touch()
    installed = install(tmp_path / "installed", "thinker", self_test="import hiddenpart")
    ended = worker("verify", "think", path=Path(f"{installed}:{checkout}"))
    assert ended.returncode == 1
    assert "not_importable: No module named 'hiddenpart'. Within the sandbox only" in ended.stdout
