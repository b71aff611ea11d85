"""Sets of the TFDS catalogue: what is read, and what is refused."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from attn_flax.checks import InputError, UnknownNameError
from attn_flax.data import (
    BOXES,
    LABELLED_IMAGES,
    MASKS,
    VIDEOS,
    CorruptRecordError,
    DatasetNotPreparedError,
    EmptySplitError,
    UnsupportedDatasetError,
    evaluation_batches,
    load_dataset,
)
from tests.data.annotated import encode, write_set

COUNTS = {"train": 10, "validation": 3}


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Flat images without a test split; the third of train is no image."""

    name = "tiny"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(names=["low", "high"]),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for index in range(COUNTS[split]):
            file = io.BytesIO()
            Image.fromarray(np.full((4, 4), 20 * index, np.uint8)).save(file, "png")
            broken = split == "train" and index == 2
            yield index, {"image": b"no image" if broken else file.getvalue(), "label": index % 2}


@pytest.fixture
def tiny_dir(tmp_path):
    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tmp_path


def test_reading_what_the_catalogue_does_not_know(tiny_dir):
    dataset = load_dataset("tiny", data_dir=tiny_dir)
    assert dataset.class_names == ("low", "high")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [8, 3, 2]
    for index in range(3):
        record = dataset.validation[index]
        assert record["label"] == index % 2
        assert np.array_equal(record["image"], np.full((4, 4, 3), 20 * index))


def test_corrupt_record_is_named(tiny_dir):
    train = load_dataset("tiny", data_dir=tiny_dir, validation=0.0).train.source
    with pytest.raises(CorruptRecordError, match="record 2 of split 'train' of tiny cannot be read"):
        train[2]
    batches = evaluation_batches(
        train, batch_size=4, shape=(4, 4, 3), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), num_classes=2
    )
    with pytest.raises(CorruptRecordError, match="record 2"):
        list(batches)


def test_empty_split(tmp_path, monkeypatch):
    monkeypatch.setitem(COUNTS, "train", 1)
    Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(EmptySplitError, match=r"'tiny' has no records in 'test': got train \(1\)"):
        load_dataset("tiny", data_dir=tmp_path)


def test_format_without_random_access(tiny_dir):
    path = tiny_dir / "tiny" / "1.0.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(
        DatasetNotPreparedError,
        match=r"(?s)expected the format array_record, got tfrecord.*experiments\.prepare tiny --dir ANOTHER",
    ):
        load_dataset("tiny", data_dir=tiny_dir)


def test_unknown_name(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown data set 'cifar1': did you mean .*'cifar10'"):
        load_dataset("cifar1", data_dir=tmp_path)
    with pytest.raises(UnknownNameError, match="unknown data set 'digit': did you mean 'digits'"):
        load_dataset("digit", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10/blue", "cifar10:9.9.9", ""])
def test_name_that_cannot_be(tmp_path, name):
    with pytest.raises(InputError, match=f"data set '{name}': "):
        load_dataset(name, data_dir=tmp_path)


def test_not_prepared(tmp_path):
    with pytest.raises(DatasetNotPreparedError) as error:
        load_dataset("mnist", data_dir=tmp_path)
    assert str(error.value).endswith(f"\n    python -m experiments.prepare mnist --dir {tmp_path}")
    assert str(tmp_path / "mnist") in str(error.value)


def test_a_set_whose_code_needs_tensorflow(tmp_path, monkeypatch):
    def code_needs_tensorflow(name, **arguments):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.ClassLabel(names=["low", "high"])}
    monkeypatch.setattr(tfds, "builder", code_needs_tensorflow)
    with pytest.raises(DatasetNotPreparedError, match=rf"expected it in {tmp_path}.*\n.*experiments.prepare needy"):
        load_dataset("needy", data_dir=tmp_path)
    image = encode(np.full((4, 4, 3), 7, np.uint8))
    write_set(tmp_path, "needy", features, {"train": [{"image": image, "label": 1}] * 20})
    dataset = load_dataset("needy", data_dir=tmp_path)
    assert dataset.class_names == ("low", "high")
    assert dataset.train[0]["label"] == 1


@pytest.mark.parametrize("name", ["ucf101", "moving_mnist", "ucf101/ucf101_1_256", "ucf101:2.0.0"])
def test_videos_that_tfds_hides_without_tensorflow(tmp_path, name):
    with pytest.raises(DatasetNotPreparedError, match=f"experiments.prepare {name} --dir"):
        load_dataset(name, kind=VIDEOS, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("kind", "known"), [(BOXES, ["voc", "kitti", "bccd"]), (MASKS, ["oxford_iiit_pet"]), (LABELLED_IMAGES, ["mnist"])]
)
def test_sets_of_the_catalogue_fit_their_kind(tmp_path, kind, known):
    for name in known:
        with pytest.raises(DatasetNotPreparedError):  # and not that it holds something else
            load_dataset(name, kind=kind, data_dir=tmp_path)


@pytest.mark.parametrize("kind", [BOXES, MASKS, VIDEOS])
def test_folders_hold_labelled_images(tmp_path, kind):
    with pytest.raises(UnsupportedDatasetError, match=f"expected the name of a set of {kind.holds}"):
        load_dataset("any", kind=kind, folder=tmp_path)


def test_no_labelled_images(tmp_path, shared_tfds):
    expected = r"'{}' does not hold labelled images: expected .* got .*{}"
    with pytest.raises(UnsupportedDatasetError, match=expected.format("camvid", r"segmentation_mask \(Image\)")):
        load_dataset("camvid", data_dir=shared_tfds)
    with pytest.raises(UnsupportedDatasetError, match=expected.format("kitti", r"objects \(Sequence\)")):
        load_dataset("kitti", data_dir=tmp_path)


def test_cifar10(shared_tfds):
    dataset = load_dataset("cifar10", data_dir=shared_tfds)
    plain = tfds.data_source("cifar10", split="test", data_dir=shared_tfds)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [45000, 5000, 10000]
    assert dataset.class_names[3] == "cat"
    for index in (0, 4567, 9999):
        assert np.array_equal(dataset.test[index]["image"], plain[index]["image"])
        assert dataset.test[index]["label"] == plain[index]["label"]
