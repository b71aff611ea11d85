"""Every mechanism's equations as pure functions: `from attn_flax import functional as F`."""

from attn_flax.mechanisms.article.article import article_attention, article_sum_attention, article_weights
from attn_flax.mechanisms.article.gate import article_gate, article_gate_weights
from attn_flax.mechanisms.channel.se import se, se_weights

__all__ = [
    "article_attention",
    "article_gate",
    "article_gate_weights",
    "article_sum_attention",
    "article_weights",
    "se",
    "se_weights",
]
