"""What the three splits are."""

import pytest

from attn_flax.checks import InputError
from attn_flax.data import load_dataset


def test_validation_comes_out_of_train_alone(digits, digits_dir):
    everything = load_dataset("digits", data_dir=digits_dir, validation=0.0)
    assert everything.validation is None
    kept, held = digits.train.indices, digits.validation.indices
    assert (len(everything.train), len(held), len(digits.test)) == (1437, 144, 360)
    assert sorted([*kept, *held]) == list(range(1437))
    test = {digits.test[i]["image"].tobytes() for i in range(360)}
    chosen = {everything.train[i]["image"].tobytes() for i in range(1437)}
    assert not test & chosen
    assert all(digits.validation[i]["image"].tobytes() in chosen for i in range(144))


@pytest.mark.parametrize("validation", [-0.1, 1.0])
def test_validation_is_a_share(validation):
    with pytest.raises(InputError, match=rf"validation must be in \[0, 1\), got {validation}"):
        load_dataset("digits", validation=validation)
