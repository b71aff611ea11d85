"""TokenLearner.

    A = sigmoid(f_4 gelu(f_3 gelu(f_2 gelu(f_1 LN(x)))))          version 1.0
    z_i = mean_hw(x · A_i)

    A = softmax_hw(W_2 gelu(W_1 LN(x) + b_1) + b_2)               version 1.1
    z_i = Σ_hw x · A_i

with 3×3 convolutions f_1 from c to s channels and f_2, f_3, f_4 from s to s, and layers W_1 from c to `hidden` features
and W_2 to s. Each of s learned maps A_i picks the positions that its token z_i sums up, so that a transformer goes on
with s tokens instead of h·w.

Differs from the paper: nothing. Version 1.1 is the authors' later form. `sum_pooling` takes the sum for the mean in
version 1.0, as their code does by default. gelu is its approximation by tanh, as in their code.

Errors elsewhere: the authors' default sums where the paper averages, so that the tokens grow with the map; their
version 1.0 takes tokens in a row only if they come from a square map.

Source: Ryoo, Piergiovanni, Arnab, Dehghani and Angelova, "TokenLearner: What Can 8 Learned Tokens Do for Images and
Videos?" (2021), arXiv:2106.11297; compared with the authors' code.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import LayerNorm, Perceptron
from attn_flax.mechanisms.layout import check_map, flatten_positions, promote

Version = Literal["1.0", "1.1"]
CONVOLUTIONS = 4


def tokenlearner_weights(x: Float[Array, "*b h w c"], score: Callable) -> Float[Array, "*b s h w"]:
    """A = sigmoid(score(x)), a map in (0, 1) for each token.

    Args:
        x: maps.
        score: x -> scores (*b, h, w, s).
    """
    return jnp.moveaxis(jax.nn.sigmoid(score(x)), -1, -3)


def tokenlearner(x: Float[Array, "*b h w c"], score: Callable, *, sum_pooling: bool = False) -> Float[Array, "*b s c"]:
    """z_i = mean_hw(x · A_i), with the A of `tokenlearner_weights`; with `sum_pooling` the sum.

    >>> tokenlearner(jnp.array([[[2.0], [6.0]]]), lambda x: jnp.zeros((1, 2, 3))).squeeze()
    Array([2., 2., 2.], dtype=float32)
    """
    z = _pool(x, tokenlearner_weights(x, score))
    return z if sum_pooling else z / (x.shape[-3] * x.shape[-2])


def tokenlearner_v11_weights(x: Float[Array, "*b h w c"], score: Callable) -> Float[Array, "*b s h w"]:
    """A = softmax_hw(score(x)), a map for each token, which sums to one."""
    scores = jnp.moveaxis(score(x), -1, -3)
    return ops.softmax(scores.reshape(*scores.shape[:-2], -1)).reshape(scores.shape)


def tokenlearner_v11(x: Float[Array, "*b h w c"], score: Callable) -> Float[Array, "*b s c"]:
    """z_i = Σ_hw x · A_i, with the A of `tokenlearner_v11_weights`.

    >>> tokenlearner_v11(jnp.array([[[2.0], [6.0]]]), lambda x: jnp.zeros((1, 2, 3))).squeeze()
    Array([4., 4., 4.], dtype=float32)
    """
    return _pool(x, tokenlearner_v11_weights(x, score))


def _pool(x, weights):
    return ops.attend(weights.reshape(*weights.shape[:-2], -1), flatten_positions(x, 2))


class Convolutions(nnx.Module):
    """f_4 gelu(f_3 gelu(f_2 gelu(f_1 x))), 3×3 convolutions without biases.

    Parameters: 9c·s + 27s².

    Args:
        channels: c.
        num_tokens: s.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.
    """

    def __init__(
        self,
        channels: int,
        num_tokens: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layer = {"use_bias": False, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        widths = [channels, *[num_tokens] * (CONVOLUTIONS - 1)]
        self.layers = nnx.List([nnx.Conv(width, num_tokens, (3, 3), **layer) for width in widths])

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b h w s"]:
        """The scores of each position."""
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(jax.nn.gelu(x))
        return x

    def cost(self, n: int) -> Cost:
        """For n positions."""
        parameters = 9 * sum(layer.in_features * layer.out_features for layer in self.layers)
        return Cost(parameters, n * parameters)


class TokenLearner(nnx.Module):
    """TokenLearner: the tokens of maps of any size.

    Parameters: 2c + 9c·s + 27s² in version 1.0, 2c + hidden·(c + s) + hidden + s in 1.1. Multiply-adds, for each of h·w
    positions: 9c·s + 27s² or hidden·(c + s), and s·c.

    Args:
        channels: c.
        num_tokens: s.
        version: "1.0" (the paper's experiments) or "1.1".
        sum_pooling: the sum for the mean, in version 1.0.
        hidden: the features between the layers of version 1.1.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 or an unknown version at construction; an input that is no map of these channels at
            the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_tokens: int = 8,
        version: Version = "1.0",
        sum_pooling: bool = False,
        hidden: int = 64,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, size in (("channels", channels), ("num_tokens", num_tokens), ("hidden", hidden)):
            check(size >= 1, f"{name} must be at least 1, got {size}.")
        check(version in get_args(Version), f"version must be '1.0' or '1.1', got {version!r}.")
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm = LayerNorm(channels, **layer)
        if version == "1.0":
            self.score = Convolutions(channels, num_tokens, **layer)
        else:
            self.score = Perceptron(channels, hidden, num_tokens, activation=jax.nn.gelu, **layer)
        self.num_tokens = num_tokens
        self.version = version
        self.sum_pooling = sum_pooling

    def attention_map(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b s h w"]:
        """A, a map for each token."""
        weights = tokenlearner_weights if self.version == "1.0" else tokenlearner_v11_weights
        return weights(self._map(x), self._score)

    def __call__(self, x: Float[Array, "*b h w c"]) -> Float[Array, "*b s c"]:
        """z, the tokens."""
        if self.version == "1.0":
            return tokenlearner(self._map(x), self._score, sum_pooling=self.sum_pooling)
        return tokenlearner_v11(self._map(x), self._score)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        h, w, c = shape
        parameters, multiply_adds = self.score.cost(h * w)
        return Cost(2 * c + parameters, multiply_adds + h * w * self.num_tokens * c)

    def _score(self, x):
        return self.score(self.norm(x))

    def _map(self, x):
        check_map(x, self.norm.num_features)
        return promote(x, self.norm)
