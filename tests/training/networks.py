"""A small network with everything that can go wrong across devices: batch statistics, dropout, attention."""

import jax
import numpy as np
from flax import nnx

from attn_flax.mechanisms.article.article import Article
from attn_flax.training.leaves import is_key


class SmallNet(nnx.Module):
    """Convolution, batch norm, dropout, attention, dropout, linear."""

    def __init__(self, *, dropout=0.0, dtype=None, rngs):
        types = {"dtype": dtype, "param_dtype": dtype or "float32"}
        self.conv = nnx.Conv(3, 8, (3, 3), **types, rngs=rngs)
        self.norm = batch_norm(8, **types, rngs=rngs)
        self.drop1 = nnx.Dropout(dropout, rngs=rngs)
        self.attention = Article(8, **types, rngs=rngs)
        self.drop2 = nnx.Dropout(dropout, rngs=rngs)
        self.linear = nnx.Linear(8, 5, **types, rngs=rngs)

    def __call__(self, x):
        x = self.drop1(jax.nn.gelu(self.norm(self.conv(x))))
        return self.linear(self.drop2(self.attention(x).mean((1, 2))))


class WideNet(nnx.Module):
    """Linear, batch norm, dropout, linear, linear; kernels large enough to be spread over devices."""

    def __init__(self, *, width=64, dropout=0.0, dtype="float32", rngs):
        types = {"dtype": dtype, "param_dtype": dtype}
        self.hidden = nnx.Linear(3, width, **types, rngs=rngs)
        self.norm = batch_norm(width, **types, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.mixed = nnx.Linear(width, 128, **types, rngs=rngs)
        self.out = nnx.Linear(128, 5, **types, rngs=rngs)

    def __call__(self, x):
        x = self.dropout(jax.nn.gelu(self.norm(self.hidden(x.mean((1, 2))))))
        return self.out(jax.nn.gelu(self.mixed(x)))


def batch_norm(size, *, param_dtype, **arguments):
    """One whose statistics have the type of its parameters; flax makes them float32 whatever the types."""
    norm = nnx.BatchNorm(size, param_dtype=param_dtype, **arguments)
    for statistic in (norm.mean, norm.var):
        statistic.set_value(statistic.get_value().astype(param_dtype))
    return norm


def plain(state):
    """A state in NumPy, its random key as numbers."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), state)


def random_batches(count, size, *, dtype="float32", seed=0):
    """Batches of noise with labels that depend on it, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        image = rng.normal(size=(size, 7, 6, 3)).astype(dtype)
        yield {"image": image, "label": (image.mean((1, 2)) @ rng.normal(size=(3, 5))).argmax(-1).astype("int32")}
