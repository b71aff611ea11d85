"""Highway layers.

    t = sigmoid(W_T x + b_T)
    y = t · f(W_H x + b_H) + (1 - t) · x

for every feature vector x, with W_T and W_H from c to c, f a relu or tanh. The transform gate t says by feature how
much of the layer's own result replaces its input. b_T starts negative, so that deep stacks first carry their input
through.

Differs from the paper: nothing; `layers` of them follow each other. With `learned_carry` a third affine map takes the
place of x in the second term.

Errors elsewhere: Awesome-Vision-Attentions has this learned carry, so that no path is left that leaves x as it is, and
prints shapes at every call.

Source: Srivastava, Greff and Schmidhuber, "Training Very Deep Networks" (2015), arXiv:1507.06228; stated from the
paper, not compared with the authors' code.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layout import check_channels, promote


def highway_weights(x: Float[Array, "*s c"], gate: Callable) -> Float[Array, "*s c"]:
    """t = sigmoid(gate(x)), in (0, 1), the transform gate of each feature.

    Args:
        x: feature vectors.
        gate: x -> W_T x + b_T, any callable on (*s, c).
    """
    return jax.nn.sigmoid(gate(x))


def highway(
    x: Float[Array, "*s c"], transform: Callable, gate: Callable, *, carry: Callable = lambda x: x
) -> Float[Array, "*s c"]:
    """y = t · transform(x) + (1 - t) · carry(x), with the t of `highway_weights`.

    Args:
        x: feature vectors.
        transform: x -> f(W_H x + b_H), any callable on (*s, c).
        gate: x -> W_T x + b_T, likewise.
        carry: the paper's is the identity.

    >>> highway(jnp.array([2.0, -4.0]), lambda x: 0 * x, lambda x: 0 * x)  # a gate half open to nothing
    Array([ 1., -2.], dtype=float32)
    """
    t = highway_weights(x, gate)
    return t * transform(x) + (1 - t) * carry(x)


class Highway(nnx.Module):
    """Highway layers on features with any axes before the channels.

    Parameters: 2·(c² + c) for each layer, 3·(c² + c) with a learned carry. Multiply-adds: 2c² or 3c² for each position
    and layer.

    Args:
        channels: c.
        layers: how many follow each other.
        activation: f.
        gate_bias: b_T at first; the paper's are negative.
        learned_carry: whether an affine map of x is carried instead of x.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input with other channels at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        layers: int = 2,
        activation: Callable[[Array], Array] = jax.nn.relu,
        gate_bias: float = -1.0,
        learned_carry: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check(channels >= 1, f"channels must be at least 1, got {channels}.")
        check(layers >= 1, f"layers must be at least 1, got {layers}.")

        def linears(bias=0.0):
            layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
            start = nnx.initializers.constant(bias)
            return nnx.List([nnx.Linear(channels, channels, bias_init=start, **layer) for _ in range(layers)])

        self.transforms = linears()
        self.gates = linears(gate_bias)
        self.carries = nnx.data(linears() if learned_carry else None)
        self.activation = activation

    def attention_map(self, x: Float[Array, "*s c"]) -> Float[Array, "*s l c"]:
        """t of each feature in each of the l layers."""
        *inputs, _ = self._stages(x)
        return jnp.stack([highway_weights(x, gate) for x, gate in zip(inputs, self.gates, strict=True)], -2)

    def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
        """y of the last layer, in the layout of x."""
        return self._stages(x)[-1]

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (*s, c)."""
        *positions, c = shape
        maps = len(self.gates) * (2 if self.carries is None else 3)
        return Cost(maps * (c * c + c), math.prod(positions) * maps * c * c)

    def _stages(self, x):
        """The input of the first layer and the output of each."""
        check_channels(x, self.gates[0].in_features)
        stages = [promote(x, self.gates[0])]
        carries = [lambda x: x] * len(self.gates) if self.carries is None else self.carries
        for linear, gate, carry in zip(self.transforms, self.gates, carries, strict=True):
            transform = lambda x, linear=linear: self.activation(linear(x))  # noqa: E731
            stages.append(highway(stages[-1], transform, gate, carry=carry))
        return stages
