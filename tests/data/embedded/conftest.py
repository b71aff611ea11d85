"""Small versions of the embedded sets."""

import pytest

from attn_flax.data.embedded import scenes, videos

FEW = {"train": 24, "validation": 5, "test": 7}


@pytest.fixture(scope="module")
def few_dir(tmp_path_factory):
    """A folder in which sets of a few records are prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "COUNTS", FEW)
        patch.setattr(videos, "COUNTS", FEW)
        yield tmp_path_factory.mktemp("few")
