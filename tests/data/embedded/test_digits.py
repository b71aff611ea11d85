"""The digits are scikit-learn's, split by scikit-learn, and are written once."""

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from attn_flax.data import DatasetNotPreparedError
from attn_flax.data.embedded import Digits, prepare
from attn_flax.data.embedded.digits import split_scans, split_scans_in_three


def test_split_is_scikit_learns(digits_dir, digits):
    scans = load_digits()
    train, test = train_test_split(np.arange(1797), test_size=360, stratify=scans.target, random_state=0)
    builder = prepare(Digits, digits_dir)
    for split, indices in (("train", train), ("test", test)):
        records = builder.as_data_source(split)
        assert [record["label"] for record in records] == scans.target[indices].tolist()
        for record, index in zip(records, indices, strict=True):
            assert record["image"].dtype == np.uint8
            expected = [[int(value * 255 / 16 + 0.5) for value in row] for row in scans.images[index]]
            assert record["image"][..., 0].tolist() == expected
    assert digits.class_names == tuple("0123456789")


def test_preparing_is_silent_and_needs_no_tensorflow(tmp_path, capfd):
    prepare(Digits, tmp_path)
    assert "tensorflow" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_process_that_comes_second_reads_what_the_first_wrote(tmp_path, monkeypatch):
    split = Digits._split_generators
    entered = []

    def meanwhile(builder, dl_manager):
        if not entered:
            entered.append(builder)
            prepare(Digits, tmp_path)
        return split(builder, dl_manager)

    monkeypatch.setattr(Digits, "_split_generators", meanwhile)
    builder = prepare(Digits, tmp_path)
    assert len(entered) == 1
    assert len(builder.as_data_source("train")) == 1437
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetNotPreparedError, match=r"digits cannot be written to .*file"):
        prepare(Digits, tmp_path / "file")


def test_validation_takes_a_tenth_of_each_label_out_of_train():
    three, two = split_scans_in_three(), split_scans()
    assert {split: len(labels) for split, (_, labels) in three.items()} == {
        "train": 1295,
        "validation": 142,
        "test": 360,
    }
    scans = {split: {scan.tobytes() for scan in images} for split, (images, _) in three.items()}
    assert not scans["validation"] & scans["train"]
    assert scans["validation"] | scans["train"] == {scan.tobytes() for scan in two["train"][0]}
    assert np.array_equal(three["test"][0], two["test"][0])
    share = np.bincount(three["validation"][1]) / np.bincount(two["train"][1])
    assert np.abs(share - 0.1).max() < 0.005
