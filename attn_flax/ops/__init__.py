"""Fast primitives: pure JAX, arrays in, arrays out, the best form chosen inside."""

from attn_flax.ops.attention import dot_product_attention, dot_product_attention_weights
from attn_flax.ops.branches import branch_softmax, conv_by_example, conv_by_experts, fuse_branches, grouped_conv, mix
from attn_flax.ops.convolution import conv_general_dilated
from attn_flax.ops.depthwise import depthwise_conv
from attn_flax.ops.linear_attention import (
    cross_covariance_attention,
    cross_covariance_weights,
    efficient_attention,
    elu_plus_one,
    linear_attention,
)
from attn_flax.ops.neighborhood import neighborhood_attention, neighborhood_attention_weights
from attn_flax.ops.normalizers import guarded_reciprocal, softmax, sum_normalize
from attn_flax.ops.pooling import adaptive_average_pool
from attn_flax.ops.positions import cell_centres, rotary_angles, rotate, sincos_coordinates, sincos_position
from attn_flax.ops.precision import at_least_float32
from attn_flax.ops.relative_position import (
    decomposed_relative_position,
    relative_position_bias,
    relative_position_index,
    resize_relative_position_table,
)
from attn_flax.ops.resizing import resize_bicubic, resize_bilinear, resize_nearest
from attn_flax.ops.sampling import bilinear_sample
from attn_flax.ops.scores import attend, dot_product_scores
from attn_flax.ops.spectral import spectral_norm
from attn_flax.ops.statistics import average, covariance, group_normalize, mean_and_variance, strip_averages
from attn_flax.ops.sum_attention import sum_attention
from attn_flax.ops.windows import (
    cyclic_shift,
    depth_to_space,
    grid_merge,
    grid_partition,
    halo_blocks,
    halo_mask,
    pad_to_multiple,
    shifted_window_mask,
    space_to_depth,
    window_merge,
    window_partition,
)

__all__ = [
    "adaptive_average_pool",
    "at_least_float32",
    "attend",
    "average",
    "bilinear_sample",
    "branch_softmax",
    "cell_centres",
    "conv_by_example",
    "conv_by_experts",
    "conv_general_dilated",
    "covariance",
    "cross_covariance_attention",
    "cross_covariance_weights",
    "cyclic_shift",
    "decomposed_relative_position",
    "depth_to_space",
    "depthwise_conv",
    "dot_product_attention",
    "dot_product_attention_weights",
    "dot_product_scores",
    "efficient_attention",
    "elu_plus_one",
    "fuse_branches",
    "grid_merge",
    "grid_partition",
    "group_normalize",
    "grouped_conv",
    "guarded_reciprocal",
    "halo_blocks",
    "halo_mask",
    "linear_attention",
    "mean_and_variance",
    "mix",
    "neighborhood_attention",
    "neighborhood_attention_weights",
    "pad_to_multiple",
    "relative_position_bias",
    "relative_position_index",
    "resize_bicubic",
    "resize_bilinear",
    "resize_nearest",
    "resize_relative_position_table",
    "rotary_angles",
    "rotate",
    "shifted_window_mask",
    "sincos_coordinates",
    "sincos_position",
    "softmax",
    "space_to_depth",
    "spectral_norm",
    "strip_averages",
    "sum_attention",
    "sum_normalize",
    "window_merge",
    "window_partition",
]
