"""Dense-and-implicit attention.

    i, f, g, o = W_x mean_hw(x) + W_h h
    c' = sigmoid(f) · c + sigmoid(i) · tanh(g)
    h' = sigmoid(o) · sigmoid(c')
    y = x · h'

where W_x and W_h are each two biased layers with a relu between, from C channels to C/r features to 4C, and h and c the
state that the block before left. One such cell is shared by all blocks of a stage: it is called on the output x of each
block in turn, with the state of the last call, and the memory that runs through the blocks scales their channels by
numbers in (0, 1).

Differs from the paper: nothing. The cell is a long short-term memory that ends with a sigmoid in place of the tanh.
What follows in the paper's residual network, relu(y + the input of the block), is left to the network. At the first
block of a stage h and c are zero, `zero_state`.

Errors elsewhere: a collection sets the state to zero at every call, so that nothing runs from block to block. The
authors' code holds fixed widths of 64, 128 and 256.

Source: Huang, Liang, Liang and Yang, "DIANet: Dense-and-Implicit Attention Network" (2019), arXiv:1905.10671; confirmed
with the authors' code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from attn_flax import ops
from attn_flax.checks import check
from attn_flax.mechanisms.cost import Cost
from attn_flax.mechanisms.layers import Perceptron
from attn_flax.mechanisms.layout import check_map, promote, reduced

State = tuple[Float[Array, "*b c"], Float[Array, "*b c"]]


def dia_state(x: Float[Array, "*b h w c"], state: State, read: Callable, recall: Callable) -> State:
    """(h', c'), of which h' is the gate, in (0, 1), one for each channel.

    Args:
        x: maps.
        state: (h, c), what the last call gave, or zeros.
        read: z -> W_x z, any callable from (*b, c) to (*b, 4c).
        recall: h -> W_h h, likewise.
    """
    h, c = state
    i, f, g, o = jnp.split(read(ops.average(x)) + recall(h), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jax.nn.sigmoid(c), c


def dia(
    x: Float[Array, "*b h w c"], state: State, read: Callable, recall: Callable
) -> tuple[Float[Array, "*b h w c"], State]:
    """y = x · h' and (h', c'), those of `dia_state`.

    >>> zeros, fourfold = jnp.zeros(2), lambda z: jnp.zeros(8)
    >>> y, (h, c) = dia(jnp.array([[[4.0, -8.0]]]), (zeros, zeros), fourfold, fourfold)
    >>> y
    Array([[[ 1., -2.]]], dtype=float32)
    """
    state = dia_state(x, state, read, recall)
    return x * state[0][..., None, None, :], state


class Dia(nnx.Module):
    """Dense-and-implicit attention of maps of any size, with a state that runs from block to block.

    >>> dia = Dia(8, rngs=nnx.Rngs(0))
    >>> maps = [jnp.ones((2, 7, 5, 8)), jnp.ones((2, 7, 5, 8))]
    >>> state = dia.zero_state(maps[0])
    >>> for x in maps:
    ...     y, state = dia(x, state)

    Parameters: 10c·hidden + 2·hidden + 8c with hidden = ⌊c/r⌋, at least 1. Multiply-adds: 10c·hidden.

    Args:
        channels: c.
        reduction: r.
        dtype: the type to compute in; by default that of input and parameters together.
        param_dtype: the type of the parameters.
        rngs: the source of the initial parameters.

    Raises:
        InputError: a size below 1 at construction; an input that is no map of these channels, or a state that is not
            two arrays (*b, c), at the call.
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int = 4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = reduced(channels, reduction)
        layer = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.read = Perceptron(channels, hidden, 4 * channels, **layer)
        self.recall = Perceptron(channels, hidden, 4 * channels, **layer)

    def zero_state(self, x: Float[Array, "*b h w c"]) -> State:
        """(h, c) before the first block, zeros for maps like x."""
        x = self._map(x)
        zeros = jnp.zeros((*x.shape[:-3], x.shape[-1]), x.dtype)
        return zeros, zeros

    def attention_map(self, x: Float[Array, "*b h w c"], state: State) -> Float[Array, "*b c"]:
        """h', a weight for each channel."""
        x = self._map(x)
        gate, _ = dia_state(x, self._state(x, state), self.read, self.recall)
        return gate

    def __call__(self, x: Float[Array, "*b h w c"], state: State) -> tuple[Float[Array, "*b h w c"], State]:
        """y, in the layout of x, and the state (h', c') for the next block."""
        x = self._map(x)
        return dia(x, self._state(x, state), self.read, self.recall)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """For an example (h, w, c)."""
        layers = self.read.cost(1)
        return Cost(2 * layers.parameters, 2 * layers.multiply_adds)

    def _map(self, x):
        check_map(x, self.read.reduce.in_features)
        return promote(x, self.read.reduce)

    def _state(self, x, state):
        expected = (*x.shape[:-3], x.shape[-1])
        shapes = [part.shape for part in state]
        check(shapes == [expected] * 2, f"state must be two arrays of shape {expected}, got shapes {shapes}.")
        h, c = state
        return h.astype(x.dtype), c.astype(x.dtype)
