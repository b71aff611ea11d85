"""Detection: the loss of a set, denoising queries, predictions and average precision."""

from attn_flax.tasks.detection.average_precision import average_precision, load_pycocotools
from attn_flax.tasks.detection.boxes import Objects, generalized_iou, to_corners
from attn_flax.tasks.detection.predictions import Detections, detections, in_pixels, predict_boxes
from attn_flax.tasks.detection.set_loss import Parts
from attn_flax.tasks.detection.task import Detection

__all__ = [
    "Detection",
    "Detections",
    "Objects",
    "Parts",
    "average_precision",
    "detections",
    "generalized_iou",
    "in_pixels",
    "load_pycocotools",
    "predict_boxes",
    "to_corners",
]
