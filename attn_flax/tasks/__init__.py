"""What is learned: loss, metrics and predictions, one file per task."""

from attn_flax.tasks.classification import Classification
from attn_flax.tasks.detection import Detection
from attn_flax.tasks.distillation import Distillation
from attn_flax.tasks.gan import Gan
from attn_flax.tasks.segmentation import Segmentation
from attn_flax.tasks.vae import Vae
from attn_flax.tasks.video import VideoClassification

__all__ = ["Classification", "Detection", "Distillation", "Gan", "Segmentation", "Vae", "VideoClassification"]
