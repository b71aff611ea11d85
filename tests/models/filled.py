"""Networks in float64 whose numbers are random, made without compiling how they begin."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax.training.leaves import is_key


def filled(create: Callable[..., nnx.Module], seed: int = 0) -> nnx.Module:
    """The network that `create(param_dtype=…, rngs=…)` makes, in evaluation mode; its statistics are positive."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64():
        network = nnx.eval_shape(lambda: create(param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
        for kind, draw in (
            (nnx.Param, lambda p: rng.normal(size=p.shape)),
            (nnx.BatchStat, lambda p: rng.uniform(0.5, 1.5, p.shape)),
            (nnx.RngState, lambda p: jax.random.key(0) if is_key(p) else np.zeros(p.shape, p.dtype)),
        ):
            numbers = jax.tree.map(lambda p, draw=draw: jnp.asarray(draw(p)), nnx.state(network, kind))
            nnx.update(network, numbers)
    network.eval()
    return network


@nnx.jit
def run(network: nnx.Module, images: jax.Array) -> jax.Array:
    """What the network makes of the images."""
    return network(images)


class Compiled(nnx.Module):
    """The network "net" under jit, for those who would otherwise run it one operation at a time."""

    def __init__(self, net: nnx.Module):
        self.net = net

    @nnx.jit
    def __call__(self, images: jax.Array) -> jax.Array:
        """What the network makes of the images."""
        return self.net(images)
