"""Where the numbers of our Modules are in timm's modules."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from flax import nnx

from attn_flax import nn
from attn_flax.checks import check
from attn_flax.interop.layouts import (
    BATCH_NORM,
    CONV,
    CONV_1X1,
    DEPTHWISE,
    GROUPED_1X1,
    LINEAR,
    NORM,
    Layer,
    Leaf,
)

Layers = Mapping[str, tuple[str, Layer]]
"""Our layers, by path, with timm's names and layouts of them."""


def timm_layers(module: nnx.Module) -> Layers:
    """The layers of a Module as timm has them.

    Raises:
        InputError: a Module that timm has no counterpart of.
    """
    check(type(module) in _LAYERS, f"timm has no counterpart of {type(module).__name__} that is known here.")
    layers = _LAYERS[type(module)]
    return layers(module) if callable(layers) else layers


def _eca_layers(module):
    window = (1, 0), (0,)
    if module.lift is None:
        return {"": ("conv", {"kernel": Leaf("weight", *window)})}
    lift = {"kernel": Leaf("weight", (1, 0), (2,)), "bias": Leaf("bias")}
    return {
        "lift": ("conv", lift),
        "": ("conv2", {"kernel": Leaf("weight", *window), "bias": Leaf("bias", None, (0,))}),
    }


def _sk_layers(module):
    layers = {
        "reduce": ("attn.fc_reduce", CONV_1X1),
        "norm": ("attn.bn", BATCH_NORM),
        "expand": ("attn.fc_select", CONV_1X1),
    }
    for i in range(len(module.convs)):
        layers |= {f"convs.{i}": (f"paths.{i}.conv", CONV), f"norms.{i}": (f"paths.{i}.bn", BATCH_NORM)}
    return layers


def _conv_norm(ours, theirs):
    return {f"{ours}.conv": (f"{theirs}.conv", CONV_1X1), f"{ours}.norm": (f"{theirs}.bn", BATCH_NORM)}


def _transform(ours, theirs):
    return {
        f"{ours}.reduce": (f"{theirs}.fc1", CONV_1X1),
        f"{ours}.norm": (f"{theirs}.norm", NORM),
        f"{ours}.expand": (f"{theirs}.fc2", CONV_1X1),
    }


_LAYERS: Mapping[type[nnx.Module], Layers | Callable[[nnx.Module], Layers]] = MappingProxyType(
    {
        nn.BilinearAttentionTransform: {
            **_conv_norm("reduce", "conv1"),
            **_conv_norm("summarize", "ba.conv1"),
            "row": ("ba.conv_p", CONV),
            "column": ("ba.conv_q", CONV),
            **_conv_norm("mix", "ba.conv2"),
            **_conv_norm("expand", "conv2"),
        },
        nn.Cbam: {
            "excite.reduce": ("channel.fc1", CONV_1X1),
            "excite.expand": ("channel.fc2", CONV_1X1),
            "convolve": ("spatial.conv.conv", CONV),
            "norm": ("spatial.conv.bn", BATCH_NORM),
        },
        nn.CoordinateAttention: {
            "reduce": ("conv1", CONV_1X1),
            "norm": ("bn1", BATCH_NORM),
            "expand_h": ("conv_h", CONV_1X1),
            "expand_w": ("conv_w", CONV_1X1),
        },
        nn.EfficientChannel: _eca_layers,
        nn.EfficientLocalAttention: {
            "conv_h": ("conv_h", DEPTHWISE),
            "conv_w": ("conv_w", DEPTHWISE),
            "norm_h": ("norm_h", NORM),
            "norm_w": ("norm_w", NORM),
        },
        nn.EffectiveSqueezeExcite: {"excite": ("fc", CONV_1X1)},
        nn.GatherExcite: {"excite.reduce": ("mlp.fc1", CONV_1X1), "excite.expand": ("mlp.fc2", CONV_1X1)},
        nn.GlobalContext: {
            "score": ("conv_attn", CONV_1X1),
            **_transform("add", "mlp_add"),
            **_transform("scale", "mlp_scale"),
        },
        nn.NonLocal: {
            "query": ("t", CONV_1X1),
            "key": ("p", CONV_1X1),
            "value": ("g", CONV_1X1),
            "project": ("z", CONV_1X1),
            "norm": ("norm", BATCH_NORM),
        },
        nn.SelectiveKernel: _sk_layers,
        nn.SimpleCoordinateAttention: {
            "reduce": ("fc1", LINEAR),
            "expand_h": ("fc_h", LINEAR),
            "expand_w": ("fc_w", LINEAR),
        },
        nn.SplitAttention: {
            "conv": ("conv", CONV),
            "reduce": ("fc1", GROUPED_1X1),
            "expand": ("fc2", GROUPED_1X1),
            "conv_norm": ("bn0", BATCH_NORM),
            "norm": ("bn1", BATCH_NORM),
        },
        nn.SqueezeExcite: {"excite.reduce": ("fc1", CONV_1X1), "excite.expand": ("fc2", CONV_1X1)},
        nn.StripAttention: {"conv_h": ("conv_h", DEPTHWISE), "conv_w": ("conv_w", DEPTHWISE)},
    }
)
