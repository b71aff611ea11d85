"""Training in replicas by `jax.vmap`: what `jax.pmap` must give where each device draws noise of its own."""

import jax
import numpy as np

from attn_flax.training.parallel import AXIS


def trained_in_replicas(task, batches, *, key, count=8, atol=1e-6):
    """The state after the batches and the metrics of each; the replicas must hold the same parameters all the time."""
    step = jax.jit(jax.vmap(lambda s, b: task.update(s, b, axis=AXIS), in_axes=(None, 0), axis_name=AXIS))
    state, metrics = task.init(key), []
    for batch in batches:
        states, seen = step(state, jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch))
        for leaf in jax.tree.leaves((states.params, states.model_state, states.ema)):
            np.testing.assert_allclose(leaf, np.broadcast_to(leaf[:1], leaf.shape), atol=atol)
        state = jax.tree.map(lambda x: x[0], states)
        metrics.append(jax.tree.map(lambda x: x[0], seen))
    return state, metrics
