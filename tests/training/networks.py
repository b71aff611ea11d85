"""A small network with everything that can go wrong across devices: batch statistics, dropout, attention."""

import jax
import numpy as np
from flax import nnx

from attn_flax.mechanisms.article.article import Article


class SmallNet(nnx.Module):
    """Convolution, batch norm, dropout, attention, dropout, linear."""

    def __init__(self, *, dropout=0.0, dtype=None, rngs):
        types = {"dtype": dtype, "param_dtype": dtype or "float32"}
        self.conv = nnx.Conv(3, 8, (3, 3), **types, rngs=rngs)
        self.norm = nnx.BatchNorm(8, **types, rngs=rngs)
        for stat in (self.norm.mean, self.norm.var):  # flax makes them float32 whatever the types
            stat.set_value(stat.get_value().astype(types["param_dtype"]))
        self.drop1 = nnx.Dropout(dropout, rngs=rngs)
        self.attention = Article(8, **types, rngs=rngs)
        self.drop2 = nnx.Dropout(dropout, rngs=rngs)
        self.linear = nnx.Linear(8, 5, **types, rngs=rngs)

    def __call__(self, x):
        x = self.drop1(jax.nn.gelu(self.norm(self.conv(x))))
        return self.linear(self.drop2(self.attention(x).mean((1, 2))))


def random_batches(count, size, *, dtype="float32", seed=0):
    """Batches of noise with labels that depend on it, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = rng.normal(size=(size, 7, 6, 3)).astype(dtype)
        yield {"image": image, "label": (image.mean((1, 2)) @ rng.normal(size=(3, 5))).argmax(-1).astype("int32")}
