"""Networks in float64 whose numbers are random."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def filled(create: Callable[..., nnx.Module], seed: int = 0) -> nnx.Module:
    """The network that `create(param_dtype=…, rngs=…)` makes, in evaluation mode; its statistics are positive."""
    rng = np.random.default_rng(seed)
    with jax.enable_x64():
        network = nnx.jit(lambda: create(param_dtype=jnp.float64, rngs=nnx.Rngs(0)))()
        for kind, draw in ((nnx.Param, rng.normal), (nnx.BatchStat, lambda size: rng.uniform(0.5, 1.5, size))):
            state = nnx.state(network, kind)
            nnx.update(network, jax.tree.map(lambda p, draw=draw: jnp.asarray(draw(size=p.shape)), state))
    network.eval()
    return network


@nnx.jit
def run(network: nnx.Module, images: jax.Array) -> jax.Array:
    """What the network makes of the images."""
    return network(images)
