"""What the attacks share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from tests.support.canary import Canary, canary


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Canary]:
    """A listener and a file that must not be touched."""
    with canary(tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def no_waiting_between_retries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield
