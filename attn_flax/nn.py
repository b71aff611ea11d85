"""Every mechanism's Module: `from attn_flax import nn`."""

from attn_flax.mechanisms.article.article import Article
from attn_flax.mechanisms.article.gate import ArticleGate
from attn_flax.mechanisms.channel.se import SqueezeExcite

__all__ = ["Article", "ArticleGate", "SqueezeExcite"]
