"""Boxes: which sets hold them, what is cleaned, and what a batch is."""

import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from attn_flax.checks import InputError
from attn_flax.data import BOXES, BadRecords, UnsupportedDatasetError, evaluation_batches, load_dataset, train_batches
from attn_flax.data.kinds import Boxes
from attn_flax.data.kinds.boxes import clean_boxes
from tests.data.annotated import encode, info_of, noise, write_set

IMAGE = tfds.features.Image(shape=(None, None, 3))
OBJECT = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog", "eel"])}
POSE = {"pose": tfds.features.ClassLabel(num_classes=5)}
FORMAT = {"shape": (6, 8, 3), "mean": (0.0,) * 3, "std": (1.0,) * 3, "num_classes": 3}


def stored(boxes, labels, **others):
    return {"image": encode(np.zeros((6, 8, 3), np.uint8)), "objects": {"bbox": boxes, "label": labels} | others}


@pytest.mark.parametrize(
    ("features", "labelling"),
    [
        ({"image": IMAGE, "objects": tfds.features.Sequence(OBJECT)}, {"label": ("cat", "dog", "eel")}),
        ({"image": IMAGE, "things": tfds.features.Sequence(OBJECT | POSE)}, {"label": ("cat", "dog", "eel")}),
        (
            {"image": IMAGE, "objects": tfds.features.Sequence({"bbox": OBJECT["bbox"], "type": OBJECT["label"]})},
            {"type": ("cat", "dog", "eel")},
        ),
        ({"image": IMAGE, "label": OBJECT["label"]}, None),
        ({"image": IMAGE, "objects": tfds.features.Sequence({"bbox": OBJECT["bbox"]})}, None),
        ({"image": IMAGE, "box": OBJECT["bbox"], "label": OBJECT["label"]}, None),
        (
            {"image": tfds.features.Image(shape=(6, 8, 1), dtype=np.float32), "o": tfds.features.Sequence(OBJECT)},
            None,
        ),
    ],
)
def test_sets_are_told_by_their_features(features, labelling):
    reader = BOXES.reader(info_of(features))
    assert (reader and reader.labellings) == labelling


GOOD = [0.1, 0.2, 0.6, 0.9]


@pytest.mark.parametrize(
    ("wrong", "label", "kept", "told"),
    [
        ([0.5, 0.5, 0.5, 0.7], 0, None, "1 box without area"),
        ([0.8, 0.1, 0.2, 0.7], 1, None, "1 box without area"),
        ([0.1, np.nan, 0.2, 0.7], 1, None, "1 box without area"),
        ([0.1, 1.0, 0.2, 1.7], 1, None, "1 box outside the image"),
        ([-0.9, 0.1, -0.2, 0.7], 1, None, "1 box outside the image"),
        ([0.1, 0.2, 0.6, 0.9], 3, None, "1 box of an unknown class"),
        ([0.1, 0.2, 0.6, 0.9], -1, None, "1 box of an unknown class"),
        ([-0.5, 0.25, 0.5, 1.5], 2, [0.0, 0.25, 0.5, 1.0], "1 box clipped"),
        ([0.0, 0.25, 0.5, 1.0005], 2, [0.0, 0.25, 0.5, 1.0], ""),
    ],
)
def test_what_is_wrong_is_cleaned_and_told(wrong, label, kept, told):
    boxes, labels, cleaned = clean_boxes(np.array([GOOD, wrong]), np.array([1, label]), 3, max_boxes=4)
    assert np.array_equal(boxes, [GOOD] if kept is None else [GOOD, kept])
    assert labels.tolist() == ([1] if kept is None else [1, label])
    assert cleaned == told


def test_the_largest_boxes_stay():
    boxes = np.array([[0, 0, s, s] for s in (0.3, 0.9, 0.1, 0.5, 0.2)])
    kept, labels, cleaned = clean_boxes(boxes, np.arange(5), 5, max_boxes=3)
    assert (labels.tolist(), cleaned) == ([0, 1, 3], "2 boxes more than max_boxes=3")
    assert np.array_equal(kept, boxes[[0, 1, 3]])


def test_crowds_are_left_out():
    features = tfds.features.Sequence(OBJECT | {"is_crowd": np.bool_})
    read = BOXES.reader(info_of({"image": IMAGE, "objects": features})).read
    record = read(stored([GOOD, [0.0, 0.0, 1.0, 1.0]], [2, 0], is_crowd=[False, True]))
    assert record["labels"].tolist() == [2]
    assert "cleaned" not in record


def test_images_without_boxes_are_records():
    read = BOXES.reader(info_of({"image": IMAGE, "objects": tfds.features.Sequence(OBJECT)})).read
    record = read(stored([], []))
    assert (record["boxes"].shape, record["labels"].shape) == ((0, 4), (0,))
    batch = BOXES.annotations([record, record], 3)
    assert (batch["labels"] == -1).all()


def test_batches_hold_centres_and_sizes_and_nothing_else():
    rng = np.random.default_rng(0)
    records, counts = [], (3, 0, 5)
    for count in counts:
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
        records.append({"boxes": corners, "labels": rng.integers(0, 7, count).astype(np.int32)})
    batch = Boxes(max_boxes=5).annotations(records, 7)
    assert (batch["boxes"].dtype, batch["labels"].dtype) == (np.float32, np.int32)
    assert (batch["boxes"].shape, batch["labels"].shape) == ((3, 5, 4), (3, 5))
    for row, record in enumerate(records):
        for place in range(5):
            if place >= counts[row]:
                assert batch["labels"][row, place] == -1
                assert not batch["boxes"][row, place].any()
                continue
            top, left, bottom, right = record["boxes"][place].tolist()
            expected = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
            np.testing.assert_allclose(batch["boxes"][row, place], expected, atol=1e-7)
            assert batch["labels"][row, place] == record["labels"][place]
    with pytest.raises(InputError, match=r"labels must be in \[0, 2\)"):
        BOXES.annotations(records, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set of 6 and 3 images with a box for each of their quarters; the third of train has one without area."""
    path, rng = tmp_path_factory.mktemp("boxes"), np.random.default_rng(3)

    def example(index, bottom=1.0):
        boxes = [tfds.features.BBox(0.0, 0.0, 0.5, 0.5), tfds.features.BBox(0.5, 0.25, bottom, 1.0)]
        return {"image": encode(noise(rng, 6, 8, 3)), "objects": {"bbox": boxes, "label": [index % 3, 1]}}

    splits = {"train": [example(i, 0.5 if i == 2 else 1.0) for i in range(6)], "test": [example(i) for i in range(3)]}
    write_set(path, "quarters", {"image": IMAGE, "objects": tfds.features.Sequence(OBJECT)}, splits)
    return path


def test_a_set_by_name_from_its_files(folder):
    dataset = load_dataset("quarters", kind=BOXES, data_dir=folder, validation=0.0)
    assert dataset.class_names == ("cat", "dog", "eel")
    record = dataset.test[1]
    assert np.array_equal(record["boxes"], [[0.0, 0.0, 0.5, 0.5], [0.5, 0.25, 1.0, 1.0]])
    assert record["labels"].tolist() == [1, 1]
    with pytest.raises(
        UnsupportedDatasetError, match=r"'quarters' does not hold labelled images.*objects \(Sequence\)"
    ):
        load_dataset("quarters", data_dir=folder)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_a_cleaned_record_is_told_of_once(folder, workers):
    dataset, told = load_dataset("quarters", kind=BOXES, data_dir=folder, validation=0.0), []
    bad = BadRecords(tell=told.append)
    batches = train_batches(dataset.train, batch_size=4, seed=0, kind=BOXES, workers=workers, bad=bad, **FORMAT)
    seen = list(itertools.islice(batches, 6))
    batches.close()
    list(evaluation_batches(dataset.train, batch_size=4, kind=BOXES, bad=bad, **FORMAT))
    assert told == ["cleaned record 2 of split 'train' of quarters: 1 box without area"]
    assert (bad.cleaned, bad.count) == (1, 0)
    assert all(set(batch) == {"image", "boxes", "labels"} for batch in seen)
    assert {(batch["labels"] >= 0).sum() for batch in seen} <= {7, 8}


def test_coco_is_tested_on_what_it_calls_validation(tmp_path):
    def examples(count, *objects):
        return [{"image": encode(np.full((6, 8, 3), count, np.uint8)), "objects": list(objects)} for _ in range(count)]

    cat = {"bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5), "label": 0, "is_crowd": False}
    splits = {"train": examples(30, cat), "validation": examples(4, cat), "test": examples(6)}
    features = {"image": IMAGE, "objects": tfds.features.Sequence(OBJECT | {"is_crowd": np.bool_})}
    write_set(tmp_path, "coco", features, splits, config="2017")
    dataset = load_dataset("coco/2017", kind=BOXES, data_dir=tmp_path)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [27, 3, 4]
    assert all(dataset.test[index]["labels"].tolist() == [0] for index in range(4))


def test_evaluation_fills_with_images_without_boxes(folder):
    test = load_dataset("quarters", kind=BOXES, data_dir=folder).test
    (batch,) = evaluation_batches(test, batch_size=5, kind=BOXES, **FORMAT)
    assert batch["weight"].tolist() == [1, 1, 1, 0, 0]
    assert (batch["labels"] >= 0).sum(1).tolist() == [2, 2, 2, 0, 0]
    assert not batch["image"][3:].any()


def test_blood_cells(shared_tfds):
    told = []
    dataset = load_dataset("bccd", kind=BOXES, data_dir=shared_tfds)
    assert dataset.class_names == ("RBC", "WBC", "Platelets")
    bad = BadRecords(tell=told.append)
    labels = [bad.read(dataset.validation, index)["labels"] for index in range(87)]
    assert np.bincount(np.concatenate(labels)).tolist() == [967, 87, 83]  # one of 968 is without area
    assert (bad.cleaned, len(told)) == (1, 1)
    assert "of split 'validation' of bccd: 1 box without area" in told[0]


def test_refusals():
    with pytest.raises(InputError, match="max_boxes must be at least 1, got 0"):
        Boxes(max_boxes=0)
