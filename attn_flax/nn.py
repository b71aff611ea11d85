"""Every mechanism's Module: `from attn_flax import nn`."""

from attn_flax.mechanisms.article.article import Article
from attn_flax.mechanisms.article.gate import ArticleGate

__all__ = ["Article", "ArticleGate"]
