"""Average precision of cases computed by hand, and beside pycocotools' own summary."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attn_flax.checks import InputError
from attn_flax.tasks.detection import Detections, Objects, average_precision
from tests.tasks.detection import naive

LEFT, RIGHT, BELOW = (0.2, 0.3, 0.2, 0.2), (0.7, 0.3, 0.2, 0.2), (0.5, 0.8, 0.3, 0.1)


def precision(found, objects, num_classes=2):
    """Of images, each a list of (box, label, score) and one of (box, label)."""
    most, n = (max(map(len, lists)) for lists in (objects, found))
    labels, boxes = np.full((len(objects), most), -1), np.zeros((len(objects), most, 4))
    for i, image in enumerate(objects):
        for j, (box, label) in enumerate(image):
            labels[i, j], boxes[i, j] = label, box
    said = Detections(np.zeros((len(found), n, 4)), np.zeros((len(found), n), int), np.zeros((len(found), n)))
    for i, image in enumerate(found):
        for j, (box, label, score) in enumerate(image):
            said.boxes[i, j], said.labels[i, j], said.scores[i, j] = box, label, score
    return average_precision(said, Objects(labels, boxes), num_classes)


def shifted(box, share):
    """The box moved to the right by that share of its width: IoU (1 - share) / (1 + share)."""
    x, y, w, h = box
    return x + share * w, y, w, h


def test_everything_right_is_one_and_everything_wrong_zero():
    objects = [[(LEFT, 0), (RIGHT, 1)], [(BELOW, 1)]]
    right = [[(box, label, 0.9) for box, label in image] for image in objects]
    assert precision(right, objects) == {"ap": 1.0, "ap50": 1.0, "ap75": 1.0}
    wrong = [[(box, 1 - label, 0.9) for box, label in image] for image in objects]
    assert precision(wrong, objects) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}


def test_a_miss_and_a_false_alarm():
    """Two objects; the surest detection is right, the next is nothing, the third is right: precision 1 up to a recall
    of a half, then 2/3. Of the 101 recalls 0, 0.01, …, 1, 51 are in the first part and 50 in the second.
    """
    found = [[(LEFT, 0, 0.9), (BELOW, 0, 0.8), (RIGHT, 0, 0.7)]]
    result = precision(found, [[(LEFT, 0), (RIGHT, 0)]])
    assert result["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert precision([found[0][:2]], [[(LEFT, 0), (RIGHT, 0)]])["ap50"] == pytest.approx(51 / 101)


def test_an_object_is_found_once():
    """The second detection of it is a false alarm, which comes before the second object's."""
    found = [[(LEFT, 0, 0.9), (LEFT, 0, 0.8), (RIGHT, 0, 0.7)]]
    assert precision(found, [[(LEFT, 0), (RIGHT, 0)]])["ap50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_overlaps_count_from_their_threshold_on():
    """An IoU of 0.72 is enough for 0.50, 0.55, 0.60, 0.65 and 0.70, five of ten."""
    share = (1 - 0.72) / (1 + 0.72)
    result = precision([[(shifted(LEFT, share), 0, 0.5)]], [[(LEFT, 0)]])
    assert result == {"ap": pytest.approx(0.5), "ap50": pytest.approx(1.0), "ap75": 0.0}


def test_classes_without_objects_do_not_count():
    """The mean is over the two classes that occur, one found and one not; detections of a third change nothing."""
    objects = [[(LEFT, 0), (RIGHT, 2)]]
    found = [[(LEFT, 0, 0.9), (BELOW, 1, 0.95)]]
    assert precision(found, objects, num_classes=4)["ap50"] == pytest.approx(0.5)


def test_scores_are_compared_over_all_images():
    """A false alarm in one image that is surer than the right detection in the other: precision 1/2 everywhere."""
    found = [[(BELOW, 0, 0.9)], [(LEFT, 0, 0.8)]]
    assert precision(found, [[], [(LEFT, 0)]])["ap50"] == pytest.approx(0.5)


def test_without_objects_it_is_not_a_number():
    assert all(np.isnan(value) for value in precision([[(LEFT, 0, 0.9)]], [[], []][:1]).values())


def test_it_is_pycocotools_own_summary(tmp_path):
    """With files, pixels and ids as COCO has them."""
    rng = np.random.default_rng(0)
    labels, boxes = naive.scene(rng, rng.integers(0, 7, 25), 7, 3)
    near = np.repeat(boxes, 2, 1) + rng.normal(scale=0.03, size=(25, 14, 4))
    near[..., 2:] = near[..., 2:].clip(0.01)
    said = np.where(rng.random((25, 14)) < 0.7, np.repeat(labels, 2, 1).clip(0), rng.integers(0, 3, (25, 14)))
    scores = rng.random((25, 14))
    result = average_precision(Detections(near, said, scores), Objects(labels, boxes), 3)

    def pixels(box):
        x, y, w, h = (float(v) * 640 for v in box)
        return [x - w / 2, y - h / 2, w, h]

    places = [(i, j) for i, j in np.ndindex(labels.shape) if labels[i, j] >= 0]
    annotations = [
        {
            "id": n + 1,
            "image_id": 100 + i,
            "category_id": 1 + int(labels[i, j]),
            "bbox": pixels(boxes[i, j]),
            "area": pixels(boxes[i, j])[2] * pixels(boxes[i, j])[3],
            "iscrowd": 0,
        }
        for n, (i, j) in enumerate(places)
    ]
    truth = {
        "images": [{"id": 100 + i, "width": 640, "height": 640} for i in range(25)],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": annotations,
    }
    results = [
        {
            "image_id": 100 + i,
            "category_id": 1 + int(said[i, j]),
            "bbox": pixels(near[i, j]),
            "score": float(scores[i, j]),
        }
        for i, j in np.ndindex(said.shape)
    ]
    for name, content in (("truth", truth), ("results", results)):
        (tmp_path / name).write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO(str(tmp_path / "truth"))
        evaluation = COCOeval(index, index.loadRes(str(tmp_path / "results")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    np.testing.assert_allclose([result[name] for name in ("ap", "ap50", "ap75")], evaluation.stats[:3], rtol=1e-9)
    assert 0.1 < result["ap"] < result["ap50"] < 0.95


def test_nothing_is_printed(capfd):
    precision([[(LEFT, 0, 0.9)]], [[(LEFT, 0)]])
    assert capfd.readouterr() == ("", "")


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"needs pycocotools: pip install 'attn_flax\[detection\]'"):
        precision([[(LEFT, 0, 0.9)]], [[(LEFT, 0)]])
