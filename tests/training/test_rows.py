"""What an evaluation keeps row by row comes whole and in order out of every layout of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax.training import Rows, evaluate, parallelize, reduce_over
from tests.training.toys import Mean, values


class Kept(Mean):
    """Keeps each row's distance from the centre beside their sum."""

    def evaluate(self, state, batch, *, axis=None):
        distance = jnp.abs(batch["value"] - state.params["centre"]).sum(-1)
        return reduce_over(axis, {"sum": distance.sum(), "rows": Rows({"distance": distance})})


@pytest.mark.parametrize(("how", "count"), [("jit", 1), ("jit", 4), ("pmap", 4)])
def test_rows_come_in_the_order_of_the_batches(how, count):
    task = Kept()
    runner = parallelize(task, how, jax.devices()[:count])
    state = task.init(jax.random.key(0))
    centre = np.asarray(state.params["centre"])
    batches = list(values(3, 8))
    sums = evaluate(runner, runner.place(state), batches)
    distance = np.concatenate([np.abs(batch["value"] - centre).sum(-1) for batch in batches])
    np.testing.assert_allclose(sums["rows"].tree["distance"], distance, rtol=1e-6)
    np.testing.assert_allclose(sums["sum"], distance.sum(), rtol=1e-6)
