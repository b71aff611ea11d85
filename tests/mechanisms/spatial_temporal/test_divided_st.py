"""Divided space-time attention against its derivation."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.mechanisms.spatial_temporal.divided_st import DividedSpaceTime
from tests.mechanisms import against_oracle
from tests.mechanisms.temporal import naive

SHAPE = (3, 5, 2, 6)
CLASS_TOKEN = (6,)
HEADS = 2
CREATE = {
    "the paper's": partial(DividedSpaceTime, 6, num_heads=HEADS),
    "the trained networks'": partial(DividedSpaceTime, 6, num_heads=HEADS, qkv_bias=True),
}


def after_time(x, p, *, norm=naive.layer_norm):
    normed, y = norm(x, p, "time_norm"), x.copy()
    for i, j in np.ndindex(x.shape[1:3]):
        attended = naive.attend(normed[:, i, j], p, HEADS, "time.heads")
        y[:, i, j] += naive.linear(attended, p, "time_project")
    return y


def frames(x, class_token):
    """The tokens of each frame, the class token first."""
    return [np.concatenate([np.reshape(class_token, (-1, 6)), frame.reshape(-1, 6)]) for frame in x]


def in_space(x, class_token, p, *, norm=naive.layer_norm):
    return [naive.attend(norm(tokens, p, "space_norm"), p, HEADS, "space") for tokens in frames(x, class_token)]


def oracle(x, p, **kinds):
    x = after_time(x, p, **kinds)
    return x + np.array(in_space(x, [], p, **kinds)).reshape(x.shape)


def with_class_token(x, class_token, p):
    x = after_time(x, p)
    given = np.array(in_space(x, class_token, p))
    return x + given[:, 1:].reshape(x.shape), class_token + sum(given[:, 0]) / len(x)


def weights(x, class_token, p):
    normed = naive.layer_norm(x, p, "time_norm")
    _, h, w, _ = x.shape
    weigh = partial(naive.weights, p=p, heads=HEADS)
    in_frames = frames(after_time(x, p), class_token)
    return {
        "temporal": np.array([[weigh(normed[:, i, j], name="time.heads") for j in range(w)] for i in range(h)]),
        "spatial": np.array([weigh(naive.layer_norm(f, p, "space_norm"), name="space") for f in in_frames]),
    }


@pytest.mark.parametrize("form", CREATE)
def test_it_is_the_paper(form):
    against_oracle.assert_equal(CREATE[form], oracle, SHAPE)
    without = lambda x, p: weights(x, [], p)  # noqa: E731
    against_oracle.assert_equal(CREATE[form], without, SHAPE, method="attention_map", gradient=False)


def test_with_a_class_token_it_is_the_paper():
    create, shapes = CREATE["the paper's"], (SHAPE, CLASS_TOKEN)
    against_oracle.assert_equal(create, with_class_token, *shapes)
    against_oracle.assert_equal(create, weights, *shapes, method="attention_map", gradient=False)


def space_first(x, p):
    x = x + np.array(in_space(x, [], p)).reshape(x.shape)
    return after_time(x, p)


def side_by_side(x, p):
    return after_time(x, p) + np.array(in_space(x, [], p)).reshape(x.shape)


MUTANTS = {
    "space first": space_first,
    "side by side": side_by_side,
    "no norm": partial(oracle, norm=lambda u, p, name: u),
    "another epsilon": partial(oracle, norm=partial(naive.layer_norm, epsilon=0.1)),
    "no residual in time": lambda x, p: oracle(x, p) - x,
    "no residual in space": lambda x, p: oracle(x, p) - after_time(x, p),
    "time alone": after_time,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_usual_mistakes_differ(mutant):
    against_oracle.assert_different(CREATE["the trained networks'"], MUTANTS[mutant], SHAPE)


def class_tokens(x, class_token, p):
    """What each frame gives the class token."""
    return np.array(in_space(after_time(x, p), class_token, p))[:, 0]


MUTANTS_OF_THE_CLASS_TOKEN = {
    "the sum over frames": lambda x, u, p: u + class_tokens(x, u, p).sum(0),
    "the first frame": lambda x, u, p: u + class_tokens(x, u, p)[0],
    "no residual": lambda x, u, p: class_tokens(x, u, p).mean(0),
    "it stays": lambda x, u, p: u,
    "time sees it": lambda x, u, p: (
        u + class_tokens(x, u, p).mean(0) + naive.attend(u[None], p, HEADS, "time.heads")[0]
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS_OF_THE_CLASS_TOKEN)
def test_usual_mistakes_with_a_class_token_differ(mutant):
    class ClassToken(DividedSpaceTime):
        def __call__(self, x, class_token):
            return super().__call__(x, class_token)[1]

    create = partial(ClassToken, 6, num_heads=HEADS, qkv_bias=True)
    against_oracle.assert_different(create, MUTANTS_OF_THE_CLASS_TOKEN[mutant], SHAPE, CLASS_TOKEN)


def test_a_class_token_changes_what_the_positions_get():
    against_oracle.assert_different(CREATE["the paper's"], lambda x, u, p: oracle(x, p), SHAPE, CLASS_TOKEN)


def test_with_zero_init_time_is_not_attended_to_at_first():
    module = DividedSpaceTime(6, num_heads=HEADS, zero_init=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=SHAPE)
    expected = x + np.array(in_space(x, [], against_oracle.numbers(module))).reshape(SHAPE)
    np.testing.assert_allclose(module(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-5)


def test_at_the_paper_width_it_has_the_authors_count():
    c = 64
    cost = DividedSpaceTime(c, qkv_bias=True, rngs=nnx.Rngs(0)).cost((8, 7, 5, c))
    assert cost.parameters == 9 * c * c + 9 * c + 2 * 2 * c
