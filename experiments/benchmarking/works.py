"""What is measured, as data: each work names a function that the sides know, and its sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

FORWARD, BACKWARD, STEP = "forward", "forward+backward", "training step"


@dataclasses.dataclass(frozen=True)
class Work:
    """One thing to compute, on several sides.

    Attributes:
        title: what the table calls it.
        function: the builder in `jax_side` and `torch_side`.
        sides: who computes it, ours first.
        arguments: of the builder, as JSON has them.
        passes: what can be timed of it.
        needs_gpu: whether it is too much for a CPU.
    """

    title: str
    function: str
    sides: tuple[str, ...]
    arguments: Mapping[str, Any]
    passes: tuple[str, ...] = (FORWARD, BACKWARD)
    needs_gpu: bool = False


def _attention(title, sides=("attn_flax", "attn_flax xla", "jax.nn", "torch"), **arguments):
    defaults = {"dtype": "float32", "bias": False, "mask": False}
    return Work(title, "attention", sides, defaults | arguments)


def _depthwise(window, dilation=(1, 1)):
    title = f"depthwise {'×'.join(map(str, window))}" + (f", dilation {dilation[0]}" if max(dilation) > 1 else "")
    arguments = {"shape": (16, 32, 32, 128), "window": window, "dilation": dilation}
    return Work(title + " at 16×32×32×128", "depthwise", ("attn_flax", "lax", "torch"), arguments)


def _training(name, shape, *, dtype="float32", steps=1):
    """Steps that are not waited for one by one, as no training waits; many of them on a GPU, few on a CPU."""
    title = f"{name} at {'×'.join(map(str, shape))}, {dtype}"
    arguments = {"name": name, "shape": shape, "dtype": dtype, "steps": steps}
    return Work(title, "training", ("attn_flax", "timm"), arguments, (STEP,), needs_gpu=steps > 1)


LARGE = {"shape": (256, 224, 224, 3), "dtype": "bfloat16", "steps": 10}
LONG = {"batch": 2, "heads": 6, "features": 64}
WORKS = {
    "attention-1024": _attention("attention, 2×1024, 6 heads of 64", tokens=1024, **LONG),
    "attention-4096": _attention(
        "attention, 2×4096, 6 heads of 64", ("attn_flax", "jax.nn", "nnx", "torch"), tokens=4096, **LONG
    ),
    "attention-4096-bf16": _attention(
        "attention, 2×4096, 6 heads of 64, bfloat16",
        ("attn_flax", "attn_flax float32", "torch"),
        tokens=4096,
        **LONG,
        dtype="bfloat16",
    ),
    "attention-8192": _attention(
        "attention, 1×8192, 6 heads of 64", ("attn_flax", "jax.nn", "torch"), tokens=8192, **LONG | {"batch": 1}
    ),
    "windows": _attention(
        "windows, 512×49, 3 heads of 32, bias and mask",
        batch=512,
        tokens=49,
        heads=3,
        features=32,
        bias=True,
        mask=True,
    ),
    "vit": _attention("ViT, 32×197, 6 heads of 64", batch=32, tokens=197, heads=6, features=64),
    "multi-head": Work(
        "nnx.MultiHeadAttention, 8×1024×384, 6 heads",
        "multi_head",
        ("attn_flax", "nnx"),
        {"shape": (8, 1024, 384), "heads": 6},
    ),
    "neighborhood": Work(
        "neighbourhood 7×7 at 4×56×56×128, 4 heads",
        "neighborhood",
        ("attn_flax", "gather"),
        {"shape": (4, 56, 56), "heads": 4, "features": 32, "window": (7, 7)},
    ),
    "depthwise-7x7": _depthwise((7, 7)),
    "depthwise-7x7-dilated": _depthwise((7, 7), (3, 3)),
    "depthwise-5x5": _depthwise((5, 5)),
    "depthwise-3x3": _depthwise((3, 3)),
    "depthwise-1x11": _depthwise((1, 11)),
    "depthwise-11x1": _depthwise((11, 1)),
    "train-seresnet50": _training("seresnet50", (8, 64, 64, 3)),
    "train-vit-small": _training("vit_small_patch16_224", (4, 224, 224, 3)),
    "train-swin-tiny": _training("swin_tiny_patch4_window7_224", (2, 224, 224, 3)),
    "gpu-seresnet50": _training("seresnet50", **LARGE),
    "gpu-vit-base": _training("vit_base_patch16_224", **LARGE),
    "gpu-swin-tiny": _training("swin_tiny_patch4_window7_224", **LARGE),
    "epoch": Work(
        "an epoch of AttentionNet on digits", "epoch", ("attn_flax", "torch"), {"batch_size": 128}, ("training",)
    ),
}
"""By the names that the command line takes."""


TIMM_ARGUMENTS = {"ge": {"use_mlp": False}}
"""Arguments without which a module of timm 1.0.31 fails."""


def mechanism(name: str, shape: tuple[int, ...], *, in_timm: bool) -> Work:
    """A mechanism of the catalogue on maps of that shape; if timm has one of that name, as timm's is, and beside it."""
    arguments = {"name": name, "shape": shape, "like_timm": TIMM_ARGUMENTS.get(name, {}) if in_timm else None}
    sides = ("attn_flax", "timm") if in_timm else ("attn_flax",)
    return Work(f"{name} at {'×'.join(map(str, shape))}", "mechanism", sides, arguments)


def model(name: str, shape: tuple[int, ...]) -> Work:
    """A network on images of that shape, beside timm's of the same name if there is one."""
    arguments = {"name": name, "shape": shape}
    return Work(f"{name} at {'×'.join(map(str, shape))}", "model", ("attn_flax", "timm"), arguments)
