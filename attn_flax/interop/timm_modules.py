"""timm's attention modules as ours: how to configure them, and where their numbers are.

Functions take timm's arguments, of those that change what is computed; what timm rounds is rounded here. Of its 1.0.31.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from flax import nnx

from attn_flax import nn
from attn_flax.checks import UnknownNameError, check, check_arguments
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


def timm_attention(name: str, channels: int, *, rngs: nnx.Rngs, **arguments) -> nnx.Module:
    """Our Module, configured as timm's `create_attn(name, channels, **arguments)` would be.

    Its rounding of widths, its biases, its further activations and its reading of the paper; not its random initial
    values. `load_timm` gives it timm's numbers.

    Args:
        name: of timm's attention registry.
        channels: the size of the last axis of its input.
        rngs: the source of its initial parameters.
        **arguments: timm's, by timm's names; and `dtype` and `param_dtype`, as all Modules here have them.

    Raises:
        UnknownNameError: timm has no such name, or the Module no such argument here; the close ones are listed.
        InputError: an argument is out of range.

    >>> timm_attention("se", 64, rngs=nnx.Rngs(0)).excite.reduce.out_features  # the paper's is 64/16
    8
    """
    if name not in TIMM:
        raise UnknownNameError("timm attention", name, TIMM)
    check(channels >= 1, f"channels must be at least 1, got {channels}.")
    types = {argument: arguments.pop(argument) for argument in ("dtype", "param_dtype") if argument in arguments}
    check_arguments(f"timm's {name}", TIMM[name], arguments)
    module, ours = TIMM[name](channels, **arguments)
    return module(channels, **ours, **types, rngs=rngs)


def make_divisible(width: float, divisor: int, *, at_least: int | None = None, round_limit: float = 0.9) -> int:
    """The multiple of `divisor` nearest to a width, one more where that is below `round_limit` times the width.

    >>> make_divisible(4.0, 8), make_divisible(42.7, 8), make_divisible(12.0, 8, round_limit=0.0)
    (8, 40, 16)
    """
    nearest = max(at_least or divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < round_limit * width else nearest


def _se(channels, *, rd_ratio=1 / 16, rd_channels=None, rd_divisor=8, bias=True):
    hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
    return nn.SqueezeExcite, {"hidden": hidden, "use_bias": bias}


def _ese(channels):
    return nn.EffectiveSqueezeExcite, {}


def _eca(channels, *, gamma=2, beta=1):
    return nn.EfficientChannel, {"kernel_size": _eca_kernel(channels, gamma, beta)}


def _ecam(channels, *, gamma=2, beta=1, rd_ratio=1 / 8, rd_channels=None, rd_divisor=8):
    hidden = make_divisible(channels * rd_ratio, rd_divisor) if rd_channels is None else rd_channels
    return nn.EfficientChannel, {
        "kernel_size": _eca_kernel(channels, gamma, beta),
        "use_mlp": True,
        "hidden": hidden,
    }


def _ceca(channels, *, gamma=2, beta=1):
    return nn.EfficientChannel, {"kernel_size": _eca_kernel(channels, gamma, beta), "circular": True}


def _eca_kernel(channels, gamma, beta):
    size = int(abs(math.log2(channels) + beta) / gamma)
    return max(size if size % 2 else size + 1, 3)


def _ge(channels, *, extent=0, use_mlp=True, rd_ratio=1 / 16, rd_channels=None, rd_divisor=1):
    hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
    return nn.GatherExcite, {"extent": extent, "use_mlp": use_mlp, "hidden": hidden}


def _gc(channels, *, use_attn=True, fuse_add=False, fuse_scale=True, rd_ratio=1 / 8, rd_channels=None, rd_divisor=1):
    hidden = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0) if rd_channels is None else rd_channels
    return nn.GlobalContext, {
        "hidden": hidden,
        "use_attention": use_attn,
        "fuse_add": fuse_add,
        "fuse_scale": fuse_scale,
        "epsilon": 1e-6,
    }


def _gca(channels, *, use_attn=True, rd_ratio=1 / 8, rd_channels=None, rd_divisor=1):
    shared = {"rd_ratio": rd_ratio, "rd_channels": rd_channels, "rd_divisor": rd_divisor}
    return _gc(channels, use_attn=use_attn, fuse_add=True, fuse_scale=False, **shared)


def _cbam(
    channels, *, rd_ratio=1 / 16, rd_channels=None, rd_divisor=1, spatial_kernel_size=7, mlp_bias=False, light=False
):
    hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
    kernel = {"kernel_size": spatial_kernel_size, "use_bias": mlp_bias, "light": light}
    return nn.Cbam, {"hidden": hidden, **kernel}


def _lcbam(channels, *, rd_ratio=1 / 16, rd_channels=None, rd_divisor=1, spatial_kernel_size=7, mlp_bias=False):
    shared = {"rd_ratio": rd_ratio, "rd_channels": rd_channels, "rd_divisor": rd_divisor}
    return _cbam(channels, **shared, spatial_kernel_size=spatial_kernel_size, mlp_bias=mlp_bias, light=True)


def _coord(channels, *, rd_ratio=1 / 16, rd_channels=None, rd_divisor=8, se_factor=2 / 3, bias=False):
    hidden = rd_channels or make_divisible(channels * rd_ratio * se_factor, rd_divisor, round_limit=0.0)
    return nn.CoordinateAttention, {"hidden": hidden, "use_bias": bias}


def _scoord(channels, *, rd_ratio=0.25, rd_channels=None, rd_divisor=8, se_factor=2 / 3, bias=True):
    hidden = rd_channels or make_divisible(channels * rd_ratio * se_factor, rd_divisor, round_limit=0.0)
    return nn.SimpleCoordinateAttention, {"hidden": hidden, "use_bias": bias}


def _ela(channels, *, kernel_size=7):
    return nn.EfficientLocalAttention, {"kernel_size": kernel_size, "groups": 1, "activation": jax.nn.silu}


def _strip(channels, *, kernel_size=3, bias=False):
    return nn.StripAttention, {"kernel_size": kernel_size, "use_bias": bias}


def _nl(channels, *, use_scale=True, rd_ratio=1 / 8, rd_channels=None, rd_divisor=8):
    hidden = make_divisible(channels * rd_ratio, rd_divisor) if rd_channels is None else rd_channels
    return nn.NonLocal, {"hidden": hidden, "scale": "channels" if use_scale else "none"}


def _bat(channels, *, block_size=7, groups=2, rd_ratio=0.25, rd_channels=None, rd_divisor=8, drop_rate=0.2):
    hidden = make_divisible(channels * rd_ratio, rd_divisor) if rd_channels is None else rd_channels
    block = {"block_size": block_size, "groups": groups, "dropout_rate": drop_rate, "use_bias": False}
    return nn.BilinearAttentionTransform, {"hidden": hidden, **block}


def _sk(
    channels,
    *,
    kernel_size=(3, 5),
    groups=1,
    rd_ratio=1 / 16,
    rd_channels=None,
    rd_divisor=8,
    keep_3x3=True,
    split_input=True,
):
    hidden = rd_channels or make_divisible(channels * rd_ratio, rd_divisor)
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
    branches = {"kernel_sizes": sizes, "dilated": keep_3x3, "split_input": split_input}
    return nn.SelectiveKernel, {"hidden": hidden, "groups": min(channels, groups), **branches}


def _splat(channels, *, kernel_size=3, groups=1, radix=2, rd_ratio=0.25, rd_channels=None, rd_divisor=8):
    if rd_channels is None:
        hidden = make_divisible(channels * radix * rd_ratio, rd_divisor, at_least=32)
    else:
        hidden = rd_channels * radix
    split = {"kernel_size": kernel_size, "groups": groups, "radix": radix, "use_norm": False}
    return nn.SplitAttention, {"hidden": hidden, **split}


TIMM: Mapping[str, Callable[..., tuple[type[nnx.Module], dict]]] = MappingProxyType(
    {
        "bat": _bat,
        "cbam": _cbam,
        "ceca": _ceca,
        "coord": _coord,
        "eca": _eca,
        "ecam": _ecam,
        "ela": _ela,
        "ese": _ese,
        "gc": _gc,
        "gca": _gca,
        "ge": _ge,
        "lcbam": _lcbam,
        "nl": _nl,
        "scoord": _scoord,
        "se": _se,
        "sk": _sk,
        "splat": _splat,
        "strip": _strip,
    }
)
"""timm's names."""

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
