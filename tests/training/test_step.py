"""One gradient step: state, averages, random numbers, accumulated parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attn_flax.checks import InputError
from attn_flax.training import Learning, TrainState

RATE = 0.1
ROWS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
START = np.random.default_rng(1).normal(size=3).astype(np.float32)


def squares(params, model_state, x, key):
    """Half the squared distance to the rows; the model state forgets by halves and counts its calls."""
    loss = 0.5 * ((params["w"] - x) ** 2).sum(-1).mean()
    new_state = {"memory": 0.5 * model_state["memory"] + x.mean(0), "calls": model_state["calls"] + 1}
    return loss, (new_state, {"loss": loss, "first": x[0, 0], "draw": jax.random.uniform(key)})


def begin(**learning):
    learning = Learning(optax.sgd(RATE), **learning)
    model_state = {"memory": jnp.zeros(3), "calls": jnp.zeros((), jnp.int32)}
    return learning, learning.init({"w": jnp.array(START)}, model_state, jax.random.key(4))


def draws(learning, state, steps):
    for _ in range(steps):
        state, metrics = learning.update(squares, state, ROWS)
        yield float(metrics["draw"])


def test_a_state_is_a_pytree_of_its_fields():
    _, state = begin(ema_decay=0.9)
    leaves, structure = jax.tree.flatten(state)
    assert len(leaves) == 1 + 1 + 2 + 0 + 3 + 1
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert all(getattr(rebuilt, f.name) is not None for f in dataclasses.fields(TrainState))
    np.testing.assert_array_equal(jax.jit(lambda s: s.ema[0]["w"])(state), START)


def test_a_step_goes_down_the_mean_gradient():
    learning, state = begin()
    state, metrics = learning.update(squares, state, ROWS)
    np.testing.assert_allclose(state.params["w"], START - RATE * (START - ROWS.mean(0)), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 * ((START - ROWS) ** 2).sum(1).mean(), rtol=1e-6)
    assert (int(state.step), int(state.model_state["calls"])) == (1, 1)


def test_a_donated_state_leaves_the_arrays_it_was_made_of():
    learning = Learning(optax.sgd(RATE, momentum=0.9), ema_decay=0.9)
    params, model_state = {"w": jnp.array(START)}, {"memory": jnp.ones(3), "calls": jnp.zeros((), jnp.int32)}
    key = jax.random.key(4)
    state = learning.init(params, model_state, key)
    jax.jit(lambda s: learning.update(squares, s, ROWS)[0], donate_argnums=0)(state)
    assert state.params["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, model_state, key)))
    np.testing.assert_array_equal(params["w"], START)


def test_averages_follow_their_formula_and_are_what_is_evaluated():
    learning, state = begin(ema_decay=0.7)
    expected = {"w": np.float64(START), "memory": np.zeros(3)}
    shares = []
    for step in range(30):
        state, _ = learning.update(squares, state, ROWS * (step + 1))
        shares.append(min(0.7, (1 + step) / (10 + step)))
        new = {"w": state.params["w"], "memory": state.model_state["memory"]}
        expected = {name: shares[-1] * expected[name] + (1 - shares[-1]) * np.float64(new[name]) for name in new}
    assert shares[0] == 0.1
    assert shares.count(0.7) == 10
    params, model_state = state.evaluated
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)
    np.testing.assert_allclose(model_state["memory"], expected["memory"], rtol=1e-5)
    assert int(model_state["calls"]) == 30
    assert np.abs(params["w"] - state.params["w"]).max() > 0.1


def test_without_averages_the_parameters_are_evaluated():
    learning, state = begin()
    state, _ = learning.update(squares, state, ROWS)
    assert state.ema is None
    assert state.evaluated == (state.params, state.model_state)


def test_averages_keep_the_type_of_the_parameters():
    learning = Learning(optax.sgd(RATE), ema_decay=0.9)
    state = learning.init({"w": jnp.array(START, jnp.bfloat16)}, {}, jax.random.key(0))
    state, _ = learning.update(lambda p, s, x, k: (((p["w"] - x) ** 2).mean(), (s, {})), state, ROWS)
    assert state.ema[0]["w"].dtype == state.params["w"].dtype == jnp.bfloat16


def test_every_step_draws_numbers_of_its_own_and_repeats_them():
    learning, state = begin()
    first = list(draws(learning, state, 5))
    assert len(set(first)) == 5
    assert first == list(draws(learning, state, 5))
    later = dataclasses.replace(state, step=jnp.array(3, jnp.int32))
    assert first[3:] == list(draws(learning, later, 2))
    other = dataclasses.replace(state, key=jax.random.key(5))
    assert not set(first) & set(draws(learning, other, 5))


def test_parts_are_taken_in_order_and_averaged():
    learning, state = begin(accumulate=4)
    state, metrics = learning.update(squares, state, ROWS)
    parts = [ROWS[i::4] for i in range(4)]
    memory = np.zeros(3)
    for part in parts:
        memory = 0.5 * memory + part.mean(0)
    np.testing.assert_allclose(state.model_state["memory"], memory, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], START - RATE * (START - ROWS.mean(0)), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 * ((START - ROWS) ** 2).sum(1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["first"], np.mean([part[0, 0] for part in parts]), rtol=1e-6)
    assert (int(state.step), int(state.model_state["calls"])) == (1, 4)


def test_every_part_draws_numbers_of_its_own():
    def noise(params, model_state, x, key):
        draw = jax.random.uniform(key)
        return 0.0 * params["w"].sum(), (model_state, {"mean": draw, "square": draw**2})

    learning, state = begin(accumulate=4)
    _, metrics = learning.update(noise, state, ROWS)
    assert metrics["square"] - metrics["mean"] ** 2 > 1e-3


def test_a_mapped_axis_averages_gradients_and_metrics_but_not_draws():
    def drawing(params, model_state, x, key):
        loss, (_, metrics) = squares(params, model_state, x, key)
        return loss, ({"draw": jax.random.uniform(key)}, metrics)

    learning, state = begin()
    step = jax.vmap(lambda rows: learning.update(drawing, state, rows, axis="parts"), axis_name="parts")
    after, metrics = step(ROWS.reshape(3, 4, 3))
    np.testing.assert_allclose(after.params["w"], np.tile(START - RATE * (START - ROWS.mean(0)), (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.full(3, 0.5 * ((START - ROWS) ** 2).sum(1).mean()), rtol=1e-6)
    assert len(set(after.model_state["draw"].tolist())) == 3
    assert set(jax.vmap(jax.random.uniform)(after.key).tolist()) == {float(jax.random.uniform(state.key))}


def test_parts_that_do_not_divide_the_batch_are_refused():
    learning, state = begin(accumulate=5)
    with pytest.raises(InputError, match="must divide the batch of a device, got accumulate=5, batch=12"):
        learning.update(squares, state, ROWS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"ema_decay": -0.1}, r"ema_decay must be in \[0, 1\), got -0.1"),
    ],
)
def test_learning_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Learning(optax.sgd(RATE), **arguments)
