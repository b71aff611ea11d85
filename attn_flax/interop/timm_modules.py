"""timm's attention modules as ours: how to configure them.

Functions take timm's arguments, of those that change what is computed; what timm rounds is rounded here. Of its 1.0.31.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from flax import nnx

from attn_flax import nn
from attn_flax.checks import UnknownNameError, check, check_arguments


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
