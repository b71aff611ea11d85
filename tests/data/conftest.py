"""The data sets that several tests read."""

from pathlib import Path

import pytest

from attn_flax.data import load_dataset

SHARED = Path(__file__).parents[3] / "shared" / "tfds"


@pytest.fixture(scope="session")
def digits(digits_dir):
    return load_dataset("digits", data_dir=digits_dir)


@pytest.fixture(scope="session")
def shared_tfds():
    if not SHARED.is_dir():
        pytest.skip("the prepared data sets are not beside the repository")
    return SHARED
