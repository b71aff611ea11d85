"""What the mechanisms over branches refuse."""

import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.mechanisms.branch.acmix import ACmix
from attn_flax.mechanisms.branch.condconv import CondConv
from attn_flax.mechanisms.branch.dynamic_conv import DynamicConv
from attn_flax.mechanisms.branch.highway import Highway
from attn_flax.mechanisms.branch.sk import SelectiveKernel
from attn_flax.mechanisms.branch.split_attention import SplitAttention

REFUSALS = {
    "sk kernels": (SelectiveKernel, {"kernel_sizes": (3, 4)}, r"kernel_sizes must be odd, .*, got \(3, 4\)"),
    "sk no kernel": (SelectiveKernel, {"kernel_sizes": ()}, r"one for each branch, got \(\)"),
    "sk groups": (SelectiveKernel, {"groups": 3}, "divide the 8 channels that a branch sees and the 8 of y, got 3"),
    "sk groups of a part": (
        SelectiveKernel,
        {"groups": 8, "split_input": True},
        "divide the 4 channels that a branch sees and the 8 of y, got 8",
    ),
    "sk parts": (
        SelectiveKernel,
        {"kernel_sizes": (3, 5, 7), "split_input": True},
        "the 3 branches must divide in_channels to split the input, got 8",
    ),
    "sk stride": (SelectiveKernel, {"stride": 0}, "stride must be at least 1, got 0"),
    "sk channels of another input": (SelectiveKernel, {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    "sk reduction": (SelectiveKernel, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "sk hidden": (SelectiveKernel, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "split radix": (SplitAttention, {"radix": 3}, "product divide channels, got radix=3, groups=1, channels=8"),
    "split no radix": (SplitAttention, {"radix": 0}, "radix and groups must be at least 1"),
    "split groups": (SplitAttention, {"groups": 8}, "got radix=2, groups=8, channels=8"),
    "split kernel": (SplitAttention, {"kernel_size": 2}, "kernel_size must be odd, got 2"),
    "split hidden": (SplitAttention, {"hidden": 7, "groups": 2}, "a multiple of groups=2, got 7"),
    "split minimum": (SplitAttention, {"minimum": 0, "reduction": 99}, "hidden must be at least 1 .*, got 0"),
    "split reduction": (SplitAttention, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "condconv experts": (CondConv, {"num_experts": 0}, "num_experts must be at least 1, got 0"),
    "condconv kernel": (CondConv, {"kernel_size": 4}, "kernel_size must be odd, got 4"),
    "condconv groups": (CondConv, {"groups": 3}, "divide the 8 channels, got 3"),
    "dynamic experts": (DynamicConv, {"num_experts": 0}, "num_experts must be at least 1, got 0"),
    "dynamic kernel": (DynamicConv, {"kernel_size": 4}, "kernel_size must be odd, got 4"),
    "dynamic groups": (DynamicConv, {"groups": 3}, "divide the 8 channels, got 3"),
    "dynamic reduction": (DynamicConv, {"reduction": 0}, "reduction must be at least 1, got 0"),
    "dynamic hidden": (DynamicConv, {"hidden": 0}, "hidden must be at least 1, got 0"),
    "dynamic temperature": (DynamicConv, {"temperature": 0.0}, r"temperature must be positive, got 0\.0"),
    "highway layers": (Highway, {"layers": 0}, "layers must be at least 1, got 0"),
    "acmix heads": (ACmix, {"heads": 3}, "divide channels, got heads=3, channels=8"),
    "acmix window": (ACmix, {"window": 4}, "window must be odd, got 4"),
    "acmix kernel": (ACmix, {"kernel_size": 2}, "kernel_size must be odd, got 2"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    module, arguments, message = REFUSALS[name]
    with pytest.raises(InputError, match=message):
        module(8, **arguments, rngs=nnx.Rngs(0))
