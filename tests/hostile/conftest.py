"""What the attacks share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import Canary, canary


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Canary]:
    """A listener and a file that must not be touched."""
    with canary(tmp_path) as made:
        yield made
