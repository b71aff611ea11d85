"""What a network attends to: the attention maps out of any network, attributions, and pictures of a run.

The drawing functions, and matplotlib with them, are loaded when first used.
"""

import importlib

from attn_flax.explain.maps import attention_maps

_HOMES = {
    "attention_rollout": "rollout",
    "attribution": "grad_cam",
    "draw_attention_maps": "pictures",
    "draw_boxes": "boxes",
    "draw_confusion_matrix": "charts",
    "draw_learning_curves": "charts",
    "draw_masks": "masks",
    "draw_samples": "samples",
    "explanations": "overview",
    "draw_strip": "strips",
}
__all__ = ["attention_maps", *_HOMES]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
