"""Fast primitives: pure JAX, arrays in, arrays out, the best form chosen inside."""

from attn_flax.ops.normalizers import guarded_reciprocal, softmax, sum_normalize
from attn_flax.ops.pooling import adaptive_average_pool
from attn_flax.ops.precision import at_least_float32
from attn_flax.ops.scores import attend, dot_product_scores
from attn_flax.ops.sum_attention import sum_attention

__all__ = [
    "adaptive_average_pool",
    "at_least_float32",
    "attend",
    "dot_product_scores",
    "guarded_reciprocal",
    "softmax",
    "sum_attention",
    "sum_normalize",
]
