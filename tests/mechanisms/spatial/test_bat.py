"""The bilinear attentional transform against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial.bat import BilinearAttentionTransform
from tests.mechanisms import against_oracle
from tests.oracles import sigmoid

SHAPE = (9, 6, 8)  # not square, as the authors' code needs it
S, GROUPS = 3, 2
FORMS = {"the authors'": {}, "timm's": {"hidden": 6, "use_bias": False}}
create = partial(partial, BilinearAttentionTransform, 8, block_size=S, groups=GROUPS)


def layer(x, p, name):
    z = x @ p[f"{name}.conv.kernel"] + p.get(f"{name}.conv.bias", 0)
    mean, variance, scale, bias = (p[f"{name}.norm.{part}"] for part in ("mean", "var", "scale", "bias"))
    return np.maximum((z - mean) / np.sqrt(variance + 1e-5) * scale + bias, 0)


def matrices(z, p, *, rate=sigmoid):
    u = layer(z, p, "summarize")
    h, w, _ = u.shape
    rows = [u[i * h // S : (i + 1) * h // S].max((0, 1)) for i in range(S)]
    columns = [u[:, i * w // S : (i + 1) * w // S].max((0, 1)) for i in range(S)]
    p_numbers = sum(row @ p["row.kernel"][i, 0] for i, row in enumerate(rows)) + p["row.bias"]
    q_numbers = sum(column @ p["column.kernel"][0, i] for i, column in enumerate(columns)) + p["column.bias"]
    p_matrix, q_matrix = rate(p_numbers).reshape(GROUPS, S, S), rate(q_numbers).reshape(GROUPS, S, S)
    return p_matrix / p_matrix.sum(2, keepdims=True), q_matrix / q_matrix.sum(1, keepdims=True)


def weights(x, p):
    p_matrix, q_matrix = matrices(layer(x, p, "reduce"), p)
    return {"rows": p_matrix, "columns": q_matrix.transpose(0, 2, 1)}


def tiled(matrix, times):
    """Every number times the identity."""
    return np.block([[number * np.eye(times) for number in row] for row in matrix])


def oracle(x, p, *, make=matrices, spread=tiled, residual=True):
    z = layer(x, p, "reduce")
    h, w, c = z.shape
    p_matrix, q_matrix = make(z, p)
    y = np.zeros_like(z)
    for channel in range(c):
        group = channel * GROUPS // c
        left, right = spread(p_matrix[group], h // S), spread(q_matrix[group], w // S)
        y[..., channel] = left @ z[..., channel] @ right
    return layer(layer(y, p, "mix"), p, "expand") + x * residual


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(create(**FORMS[form]), oracle, SHAPE)
    against_oracle.assert_equal(create(**FORMS[form]), weights, SHAPE, method="attention_map", gradient=False)


def by_block(matrix, times):
    """The other order: whole copies of the matrix, one for each place."""
    return np.kron(np.eye(times), matrix)


def q_transposed(z, p):
    p_matrix, q_matrix = matrices(z, p)
    return p_matrix, q_matrix.transpose(0, 2, 1)


def columns_of_p(z, p):
    p_matrix, q_matrix = matrices(z, p)
    return p_matrix / p_matrix.sum(1, keepdims=True), q_matrix


MUTANTS = {
    "Q transposed": partial(oracle, make=q_transposed),
    "the columns of P normalised": partial(oracle, make=columns_of_p),
    "no sigmoid": partial(oracle, make=partial(matrices, rate=np.exp)),
    "blocks within and not across": partial(oracle, spread=by_block),
    "no residual": partial(oracle, residual=False),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(create(), MUTANTS[mutant], SHAPE)


def test_training_drops_whole_channels():
    module = BilinearAttentionTransform(16, dropout_rate=0.5, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 4, 16)), jnp.float32)
    added = np.asarray(nnx.jit(lambda module, x: module(x) - x)(module, x))
    dropped = (added == 0).all((1, 2))
    assert 0.3 < dropped.mean() < 0.9
    assert (added[np.broadcast_to(~dropped[:, None, None], added.shape)] > 0).any()


def test_sums_of_sigmoids_do_not_underflow():
    module = BilinearAttentionTransform(8, rngs=nnx.Rngs(0))
    module.row.bias[...] = jnp.full_like(module.row.bias[...], -200.0)
    rows = nnx.jit(lambda module, x: module.attention_map(x))(module, jnp.ones((4, 4, 8)))["rows"]
    np.testing.assert_allclose(rows.sum(-1), 1, rtol=1e-5)


def test_it_has_as_many_parameters_as_timm():
    arguments = {"reduction": 4, "block_size": 7, "groups": 2, "use_bias": False}
    module = nnx.eval_shape(lambda: BilinearAttentionTransform(64, **arguments, rngs=nnx.Rngs(0)))
    assert module.cost((7, 7, 64)).parameters == 5472
