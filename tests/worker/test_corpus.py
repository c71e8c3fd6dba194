"""Real files of many projects: each ends in a picture or a named refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geoprocessing_worker.errors import JobError
from tests.support.rasters import picture_of, run

CORPUS = Path(__file__).parents[3] / "shared" / "corpus"
FILES = sorted(CORPUS.glob("*.tif*"))

REFUSED = {
    "geotrellis__aspect-tiled-bilinear-linux.tif": "not_a_tiff",
    "geotrellis__jpeg-test-deflate-small.tif": "corrupt_block",
}


@pytest.mark.skipif(not FILES, reason="the corpus is not beside this checkout")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_ends_in_a_picture_or_a_named_refusal(path: Path, tmp_path: Path) -> None:
    """No traceback, and no other refusal than the known ones."""
    expected = REFUSED.get(path.name)
    try:
        result = run(path, tmp_path, max_size=512)
    except JobError as error:
        assert error.code == expected, error.message  # noqa: PT017 - both outcomes are right, by file
        return
    assert expected is None
    picture = picture_of(result)
    assert max(picture.shape[:2]) <= 512
    metadata: Any = result.metadata
    assert picture[..., 3].any() == (metadata["validFraction"] > 0)
    varied = metadata["validFraction"] > 0 and any(
        band["maximum"] > band["minimum"] for band in metadata["statistics"]["bands"]
    )
    shown = picture[picture[..., 3] > 0]
    if varied and metadata["validFraction"] > 0.01:
        assert len(np.unique(shown, axis=0)) > 1, "the data varies, the picture does not"
