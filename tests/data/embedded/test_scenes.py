"""The digit scenes hold what their annotations say."""

import itertools

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from attn_flax.data import BOXES, MASKS, load_dataset
from attn_flax.data.embedded.digits import split_scans_in_three
from attn_flax.data.embedded.scenes import make_scene


@pytest.fixture(scope="module")
def scenes():
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(5)
    return [make_scene(rng, *split_scans_in_three()["train"], photographs) for _ in range(150)]


def test_one_to_six_digits_of_every_label(scenes):
    counts = [len(labels) for _, _, labels, _ in scenes]
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert {label for _, _, labels, _ in scenes for label in labels} == set(range(10))


def test_boxes_are_inside_and_overlap_little(scenes):
    for _, boxes, _, _ in scenes:
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= 64).all()
        for one, other in itertools.combinations(boxes.tolist(), 2):
            pixels, others = (
                {(y, x) for y in range(top, bottom) for x in range(left, right)}
                for top, left, bottom, right in (one, other)
            )
            assert len(pixels & others) <= 0.1 * min(len(pixels), len(others))


def test_a_box_is_the_extent_of_its_ink(scenes):
    alone = [(boxes[0], labels[0], mask) for _, boxes, labels, mask in scenes if len(labels) == 1]
    assert len(alone) > 10
    for box, label, mask in alone:
        rows, columns = (np.flatnonzero((mask == label + 1).any(axis)) for axis in (1, 0))
        assert box.tolist() == [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
        assert set(np.unique(mask)) == {0, label + 1}


def test_all_ink_is_in_the_box_of_its_label(scenes):
    for _, boxes, labels, mask in scenes:
        for y, x in np.argwhere(mask).tolist():
            assert any(
                label + 1 == mask[y, x] and top <= y < bottom and left <= x < right
                for (top, left, bottom, right), label in zip(boxes.tolist(), labels, strict=True)
            )


def test_digits_are_of_several_sizes_and_stand_out(scenes):
    heights = [bottom - top for _, boxes, _, _ in scenes for top, _, bottom, _ in boxes.tolist()]
    assert 10 <= min(heights) <= 13
    assert 22 <= max(heights) <= 24
    contrasts = []
    for image, boxes, labels, mask in scenes:
        luma = image @ [0.299, 0.587, 0.114]
        for (top, left, bottom, right), label in zip(boxes.tolist(), labels, strict=True):
            part, ink = luma[top:bottom, left:right], mask[top:bottom, left:right]
            if (ink == 0).any() and (ink == label + 1).any():
                contrasts.append(abs(part[ink == label + 1].mean() - part[ink == 0].mean()))
    assert np.quantile(contrasts, 0.05) > 30
    assert np.median(contrasts) > 55


def test_the_set_is_one_of_boxes_and_one_of_masks(few_dir):
    boxes, masks = (load_dataset("digit_scenes", kind=kind, data_dir=few_dir) for kind in (BOXES, MASKS))
    assert [len(split) for split in (boxes.train, boxes.validation, boxes.test)] == [24, 5, 7]
    assert boxes.class_names == tuple("0123456789")
    assert masks.class_names == ("background", *"0123456789")
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    rng = np.random.default_rng(2)  # of the third split
    for index in range(7):
        image, corners, labels, mask = make_scene(rng, *split_scans_in_three()["test"], photographs)
        for record in (boxes.test[index], masks.test[index]):
            assert np.array_equal(record["image"], image)
        assert np.array_equal(boxes.test[index]["boxes"] * 64, corners)
        assert boxes.test[index]["labels"].tolist() == labels
        assert np.array_equal(masks.test[index]["mask"], mask)
