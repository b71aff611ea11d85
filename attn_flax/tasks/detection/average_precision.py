"""Average precision, as COCO defines and pycocotools computes it.

Source: Lin et al., "Microsoft COCO: Common Objects in Context" (2014), arXiv:1405.0312.
"""

import contextlib
import io
from types import ModuleType

import numpy as np
from jaxtyping import Float

from attn_flax.checks import InputError
from attn_flax.tasks.detection.boxes import Objects
from attn_flax.tasks.detection.predictions import MOST_DETECTIONS, Detections

ANY_AREA = (0.0, 1e10)


def average_precision(found: Detections, objects: Objects, num_classes: int) -> dict[str, float]:
    """The mean "ap" over the classes that occur and over overlaps of 0.50, 0.55, …, 0.95; "ap50" and "ap75" at one.

    Args:
        found: of images (b, n), boxes as (c_x, c_y, w, h), in NumPy.
        objects: theirs (b, m), likewise.
        num_classes: of the objects.

    Returns:
        NaN if there is no object in any image.

    Raises:
        InputError: pycocotools is not installed.
    """
    cocoeval = load_pycocotools()
    images, classes = range(len(objects.labels)), range(num_classes)
    truth = [
        {"image_id": i, "category_id": int(label), "bbox": _corner_and_size(box), "area": 1.0, "iscrowd": 0}
        for i in images
        for label, box in zip(objects.labels[i], objects.boxes[i], strict=True)
        if label >= 0
    ]
    if not truth:
        return dict.fromkeys(("ap", "ap50", "ap75"), float("nan"))
    said = [
        {"image_id": i, "category_id": int(label), "bbox": _corner_and_size(box), "score": float(score), "area": 1.0}
        for i in images
        for box, label, score in zip(found.boxes[i], found.labels[i], found.scores[i], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = cocoeval.COCOeval(_index(truth, images, classes), _index(said, images, classes), "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [ANY_AREA], ["all"]
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # (overlaps, recalls, classes), -1 for a class without objects
    of_overlaps = [float(p[p >= 0].mean()) for p in precision]
    return {"ap": float(np.mean(of_overlaps)), "ap50": of_overlaps[0], "ap75": of_overlaps[5]}


def load_pycocotools() -> ModuleType:
    """Its module of evaluation.

    Raises:
        InputError: it is not installed.
    """
    try:
        from pycocotools import cocoeval
    except ImportError as error:
        raise InputError(
            "average precision needs pycocotools: pip install 'attn_flax[detection]', or pip install pycocotools."
        ) from error
    return cocoeval


def _index(boxes, images, classes):
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": i} for i in images],
        "categories": [{"id": k} for k in classes],
        "annotations": [box | {"id": i} for i, box in enumerate(boxes, start=1)],  # 0 would count as no match
    }
    index.createIndex()
    return index


def _corner_and_size(box: Float[np.ndarray, " 4"]) -> list[float]:
    """(x_1, y_1, w, h)."""
    x, y, w, h = box.tolist()
    return [x - w / 2, y - h / 2, w, h]
