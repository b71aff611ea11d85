"""Masks: which sets hold them, what their values mean, and what is wrong with them."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from attn_flax.checks import InputError
from attn_flax.data import MASKS, BadRecords, CorruptRecordError, evaluation_batches, load_dataset
from tests.data.annotated import encode, info_of, noise, write_set

IMAGE = tfds.features.Image(shape=(None, None, 3))
MASK = tfds.features.Image(shape=(None, None, 1))
FEATURES = {"image": IMAGE, "segmentation_mask": MASK}
NAMES = {"class_names": ["sky", "void", "road", "car"], "void_id": 1}
RNG = np.random.default_rng(8)


@pytest.mark.parametrize(
    ("features", "metadata", "name", "expected"),
    [
        (FEATURES, NAMES, "made", ("sky", "road", "car")),
        (FEATURES, {"class_names": ["a", "b"]}, "made", ("a", "b")),
        (FEATURES, None, "oxford_iiit_pet", ("pet", "background", "border")),
        (FEATURES, None, "made", None),
        ({"image": IMAGE}, NAMES, "made", None),
        (FEATURES | {"segmentation_mask": IMAGE}, NAMES, "made", None),
    ],
)
def test_sets_are_told_by_their_features(features, metadata, name, expected):
    reader = MASKS.reader(info_of(features, metadata, name))
    assert (reader and reader.labellings) == (expected and {"class": expected})


def read(mask, metadata=NAMES, name="made", image_shape=(5, 7, 3)):
    reader = MASKS.reader(info_of(FEATURES, metadata, name))
    return reader.read({"image": encode(noise(RNG, *image_shape)), "segmentation_mask": mask})


def test_void_is_ignored_and_the_classes_close_the_gap():
    values = RNG.integers(0, 4, (5, 7)).astype(np.uint8)
    record = read(encode(values))
    assert np.array_equal(record["mask"], np.array([0, -1, 1, 2])[values])
    assert "cleaned" not in record


def test_unknown_values_are_ignored_and_told():
    values = RNG.integers(0, 4, (5, 7)).astype(np.uint8)
    values[2, 3:6], values[0, 0] = 9, 255
    record = read(encode(values))
    assert record["cleaned"] == "4 pixels of unknown classes"
    assert record["mask"][2, 3:6].tolist() == [-1, -1, -1]
    assert record["mask"][0, 0] == -1


def test_pets_count_from_one():
    values = RNG.integers(1, 4, (5, 7)).astype(np.uint8)
    assert np.array_equal(read(encode(values), None, "oxford_iiit_pet")["mask"], values - 1)


def test_a_palette_is_read_by_its_indices():
    grey = np.array([[0, 0, 200, 200], [0, 200, 0, 0]], np.uint8)
    mask = read(encode(grey, "P"), image_shape=(2, 4, 3))["mask"]
    assert len(np.unique(mask)) == 2 or (mask == -1).any()  # the indices of a palette are not its grey levels
    assert mask[0, 0] == mask[1, 0] != mask[0, 2]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (b"", "it has no mask"),
        (encode(np.zeros((7, 5), np.uint8)), r"its mask has shape \(7, 5\), its image \(5, 7\)"),
        (encode(np.zeros((5, 7, 3), np.uint8)), r"its mask has shape \(5, 7, 3\)"),
    ],
)
def test_masks_that_cannot_be_read(mask, message):
    with pytest.raises(ValueError, match=message):
        read(mask)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("masks")

    def example(index, size=(5, 7)):
        mask = np.full(size, index % 4, np.uint8)
        return {"image": encode(noise(RNG, 5, 7, 3)), "segmentation_mask": encode(mask)}

    splits = {"train": [*(example(i) for i in range(7)), example(7, (4, 4))], "test": [example(i) for i in range(3)]}
    write_set(path, "roads", FEATURES, splits, NAMES)
    return path


def test_a_set_by_name_from_its_files(folder):
    dataset = load_dataset("roads", kind=MASKS, data_dir=folder, validation=0.0)
    assert dataset.class_names == ("sky", "road", "car")
    bad = BadRecords(1, lambda message: None)
    shape = {"shape": (5, 7, 3), "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_classes": (3,)}
    first, second = evaluation_batches(dataset.train, batch_size=5, kind=MASKS, bad=bad, **shape)
    assert bad.count == 1
    assert first["mask"].dtype == np.int32
    assert first["mask"][:, 0, 0].tolist() == [0, -1, 1, 2, 0]
    assert second["mask"][:, 0, 0].tolist() == [-1, 1, -1, -1, -1]
    assert second["weight"].tolist() == [1, 1, 0, 0, 0]
    with pytest.raises(
        CorruptRecordError, match=r"record 7 of split 'train' of roads cannot be read: its mask has shape"
    ):
        list(evaluation_batches(dataset.train, batch_size=5, kind=MASKS, **shape))


def test_classes_that_the_model_lacks_are_refused():
    with pytest.raises(InputError, match=r"masks must be in \[-1, 3\), got 0 to 3"):
        MASKS.annotations([{"mask": np.array([[0, 3]], np.int16)}], 3)


def test_streets(shared_tfds):
    dataset = load_dataset("camvid", kind=MASKS, data_dir=shared_tfds)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [367, 101, 233]
    assert (len(dataset.class_names), dataset.class_names[3]) == (11, "Road")
    plain = tfds.builder_from_directory(shared_tfds / "camvid" / "1.0.0").as_data_source("test")
    for index in (0, 100, 232):
        record, values = dataset.test[index], plain[index]["segmentation_mask"][..., 0].astype(int)
        assert np.array_equal(record["mask"], np.where(values == 11, -1, values))
        assert "cleaned" not in record
