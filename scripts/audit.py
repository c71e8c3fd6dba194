"""Check the pinned packages: bill of materials, hashes, known weaknesses. `make audit` runs it.

Exit code 1 on a known weakness or a missing hash, else 0. Packages without a lookup are counted on a line of their own:
pip-audit calls them "no known vulnerabilities".
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINS = tuple(f"requirements{kind}.txt" for kind in ("", "-api", "-bench", "-dev", "-worker"))
BILL = "sbom.json"
PATIENCE = 600  # seconds
_CURE = "The registry has no records of weaknesses. Run `make audit` with access to pypi.org."
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+(\[[^\]]*\])?)==", re.MULTILINE)


def without_hash(requirements: str) -> list[str]:
    """Return the names of pins without a hash."""
    starts = [match.start() for match in _PIN.finditer(requirements)]
    blocks = [requirements[start:end] for start, end in zip(starts, [*starts[1:], None], strict=False)]
    return [block.split("==")[0] for block in blocks if "--hash=sha256:" not in block]


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Return exit code and lines for pip-audit's JSON report."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    weak = [(package, found) for package in packages for found in package.get("vulns", ())]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package, found in weak
    ]
    lines.append(f"{len(packages) - len(skipped)} of {len(packages)} packages looked up, {len(weak)} known weaknesses")
    if skipped:
        lines.append(f"NOT LOOKED UP: {len(skipped)} packages. {_CURE}")
    return int(bool(weak)), lines


def _tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name(name)
    return subprocess.run(  # noqa: S603 - a program of this environment
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def main() -> int:
    """Run all three checks. Return the exit code."""
    made = _tool("cyclonedx-py", "requirements", PINS[0], "--output-reproducible", "-o", BILL)
    print(f"{BILL}: {'written' if made.returncode == 0 else made.stderr.strip()}")
    bare = [name for pins in PINS for name in without_hash((ROOT / pins).read_text())]
    print(f"hashes: {'missing for ' + ', '.join(bare) if bare else 'one or more for each pinned file'}")
    audited = _tool(
        "pip-audit", "--require-hashes", "--disable-pip", "-r", PINS[0], "-f", "json", "--progress-spinner", "off"
    )
    try:
        code, lines = verdict(json.loads(audited.stdout))
    except ValueError:
        code, lines = 0, [f"NOT LOOKED UP: all packages. {_CURE}", audited.stderr.strip()[-2000:]]
    print("\n".join(lines))
    return 1 if made.returncode or bare else code


if __name__ == "__main__":
    sys.exit(main())
