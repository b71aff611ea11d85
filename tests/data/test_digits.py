"""The digits are scikit-learn's, split by scikit-learn, and are written once."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from attn_flax.data import DatasetNotPreparedError
from attn_flax.data.digits import Digits, prepare_digits


def test_split_is_scikit_learns(digits_dir, digits):
    scans = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=scans.target, random_state=0)
    builder = prepare_digits(digits_dir)
    for split, indices in (("train", train), ("test", test)):
        records = builder.as_data_source(split)
        assert [record["label"] for record in records] == scans.target[indices].tolist()
        for record, index in zip(records, indices, strict=True):
            assert record["image"].dtype == np.uint8
            expected = [[int(value * 255 / 16 + 0.5) for value in row] for row in scans.images[index]]
            assert record["image"][..., 0].tolist() == expected
    assert digits.class_names == tuple("0123456789")


def test_preparing_is_silent_and_needs_no_tensorflow(tmp_path, capfd):
    prepare_digits(tmp_path)
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_process_that_comes_second_reads_what_the_first_wrote(tmp_path, monkeypatch):
    split = Digits._split_generators
    entered = []

    def meanwhile(builder, dl_manager):
        if not entered:
            entered.append(builder)
            prepare_digits(tmp_path)
        return split(builder, dl_manager)

    monkeypatch.setattr(Digits, "_split_generators", meanwhile)
    builder = prepare_digits(tmp_path)
    assert len(entered) == 1
    assert len(builder.as_data_source("train")) == 1437
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetNotPreparedError, match=r"digits cannot be written to .*file"):
        prepare_digits(tmp_path / "file")
