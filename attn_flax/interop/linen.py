"""Modules of Flax NNX as Modules of Flax Linen."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen, nnx
from jaxtyping import PyTree

from attn_flax.training import Network

STATE = "batch_stats"


class Linen(linen.Module):
    """A Module of Linen that computes what one of NNX does, as `to_linen` makes it."""

    network: Network
    initial: Callable[[], tuple[PyTree, PyTree]]

    @linen.compact
    def __call__(self, *inputs: Any, train: bool = False) -> Any:
        """The output; in training with dropout by the key "dropout", and running statistics that move if mutable."""
        params, state = self.initial()
        params = {name: self.param(name, lambda _, value=value: value) for name, value in params.items()}
        variables = {name: self.variable(STATE, name, lambda value=value: value) for name, value in state.items()}
        state = {name: variable.value for name, variable in variables.items()}
        if not train:
            return self.network.merge(params, state)(*inputs)
        key = self.make_rng("dropout") if jax.tree.leaves(self.network.rng_state) else jax.random.key(0)
        out, state = self.network.train(params, state, *inputs, key=key)
        if self.is_mutable_collection(STATE) and not self.is_initializing():
            for name, variable in variables.items():
                variable.value = state[name]
        return out


def to_linen(module: nnx.Module) -> Linen:
    """The Module for code in Linen: `init` gives its own numbers, whatever the key, as "params" and "batch_stats".

    `apply(variables, x)` computes in evaluation mode; `apply(variables, x, train=True, mutable=["batch_stats"],
    rngs={"dropout": key})` in training mode, where the key is needed if anything is random. The Module stays as it is.

    Args:
        module: any of Flax NNX, such as an attention or a whole network.

    >>> from attn_flax import nn
    >>> block = to_linen(nn.SqueezeExcite(16, reduction=4, rngs=nnx.Rngs(0)))
    >>> variables = block.init(jax.random.key(1), jax.numpy.ones((2, 7, 5, 16)))
    >>> block.apply(variables, jax.numpy.ones((2, 7, 5, 16))).shape
    (2, 7, 5, 16)
    """
    network, params, state = Network.split(module)
    return Linen(network, lambda: (params, state))
