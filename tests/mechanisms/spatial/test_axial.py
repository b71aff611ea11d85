"""Axial attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.axial import AxialAttention, axial_attention
from tests.mechanisms import against_oracle
from tests.oracles import scores, softmax_values, weighted_sums

SHAPE = (5, 3, 6)
create = partial(partial, AxialAttention, 6, num_heads=2)
HEADS = (slice(0, 3), slice(3, 6))


def line_weights(line, p, axis, *, scale=3**-0.5):
    q, k = (line @ p[f"{axis}.{name}.kernel"] for name in ("query", "key"))
    return np.array([softmax_values(scale * scores(q[:, head], k[:, head])) for head in HEADS])


def lines(x, axis):
    return np.swapaxes(x, 0, 1) if axis == "height" else x


def axis_weights(x, p, axis):
    return np.array([line_weights(line, p, axis) for line in lines(x, axis)])


def along(x, p, axis, **scale):
    out = []
    for line in lines(x, axis):
        alpha, v = line_weights(line, p, axis, **scale), line @ p[f"{axis}.value.kernel"]
        out.append(np.concatenate([weighted_sums(a, v[:, head]) for a, head in zip(alpha, HEADS, strict=True)], axis=1))
    return lines(np.array(out) @ p[f"{axis}.project.kernel"] + p[f"{axis}.project.bias"], axis)


def summed(x, p, **scale):
    return along(x, p, "height", **scale) + along(x, p, "width", **scale)


def sequential(x, p, order=("height", "width")):
    for axis in order:
        x = along(x, p, axis)
    return x


def weights(x, p, *, in_sequence=False):
    seen_by_width = along(x, p, "height") if in_sequence else x
    return {"height": axis_weights(x, p, "height"), "width": axis_weights(seen_by_width, p, "width")}


@pytest.mark.parametrize("in_sequence", [False, True])
def test_it_is_the_paper(in_sequence):
    of_module = create(sequential=in_sequence)
    against_oracle.assert_equal(of_module, sequential if in_sequence else summed, SHAPE)
    of_weights = partial(weights, in_sequence=in_sequence)
    against_oracle.assert_equal(of_module, of_weights, SHAPE, method="attention_map", gradient=False)


MUTANTS = {
    "in sequence": sequential,
    "unscaled": partial(summed, scale=1.0),
    "scaled by the channels": partial(summed, scale=6**-0.5),
    "one axis alone": lambda x, p: along(x, p, "height"),
    "the axes exchanged": lambda x, p: np.swapaxes(summed(np.swapaxes(x, 0, 1), p), 0, 1),
    "a residual": lambda x, p: x + summed(x, p),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_the_order_of_a_sequence_matters():
    against_oracle.assert_different(create(sequential=True), partial(sequential, order=("width", "height")), SHAPE)


@pytest.mark.parametrize("in_sequence", [False, True])
def test_it_follows_any_order_of_the_rows_and_of_the_columns(in_sequence):
    module, rng = AxialAttention(6, num_heads=2, sequential=in_sequence, rngs=nnx.Rngs(0)), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    rows, columns = rng.permutation(5), rng.permutation(3)
    np.testing.assert_allclose(module(x[rows][:, columns]), module(x)[rows][:, columns], rtol=1e-5, atol=1e-6)


def test_a_line_knows_nothing_of_the_others():
    x = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
    same = lambda x: x  # noqa: E731
    out, other = (axial_attention(x, same, same, same, axis=-2) for x in (x, x.at[1:].add(1)))
    np.testing.assert_array_equal(out[0], other[0])
    assert (out[1] != other[1]).any()


def test_it_has_as_many_parameters_as_its_eight_layers():
    module = nnx.eval_shape(lambda: AxialAttention(64, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 8 * 64**2 + 2 * 64
