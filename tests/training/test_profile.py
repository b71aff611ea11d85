"""A trace of the steps after the first ones."""

import jax
import pytest

from attn_flax.training import Plan, Profile, fit, parallelize
from tests.training.toys import Mean, values


@pytest.mark.parametrize("steps", [4, 40])
def test_the_steps_after_the_first_are_traced(tmp_path, steps):
    runner = parallelize(Mean(), "jit", jax.devices()[:1])
    profile = Profile(tmp_path, skip=2, steps=steps)
    fit(runner, runner.place(Mean().init(jax.random.key(0))), values(10, 5), Plan(5, 5, 10), callbacks=[profile])
    (trace,) = tmp_path.rglob("*.xplane.pb")
    assert b"update" in trace.read_bytes()
