"""The linear forms against their quadratic definitions in loops, and cross-covariance attention against timm's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attn_flax import ops
from attn_flax.checks import InputError
from tests import oracles, timm_oracle
from tests.compiled import with_gradients

EPSILON = 0.1


def random(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


def tokens(batch=2, n=7, m=5, k=3, d=6, e=4):
    return random((batch, n, k, d), (batch, m, k, d), (batch, m, k, e))


def heads(q, k, v):
    """Yields the index of each example and head, and its queries, keys and values."""
    for b, head in itertools.product(range(len(q)), range(q.shape[2])):
        yield b, head, q[b, :, head], k[b, :, head], v[b, :, head]


def exponential(x):
    return np.exp(x - x.max())


def linear(q, k, v):
    """The definition by similarities: o_i = Σ_j s_ij v_j g(Σ_j s_ij)."""
    o = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, head, q_h, k_h, v_h in heads(q, k, v):
        for i, q_i in enumerate(q_h):
            similarity = [sum(phi(q_i) * phi(k_j)) for k_j in k_h]
            total = sum(s * v_j for s, v_j in zip(similarity, v_h, strict=True))
            o[b, i, head] = total * oracles.reciprocal(sum(similarity), EPSILON)
    return o


def phi(x):
    return np.array([x_c + 1 if x_c > 0 else np.exp(x_c) for x_c in x])


def efficient(q, k, v):
    o = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, head, q_h, k_h, v_h in heads(q, k, v):
        kappa = np.array([exponential(c) / sum(exponential(c)) for c in k_h.T]).T
        for i, q_i in enumerate(q_h):
            rho = exponential(q_i) / sum(exponential(q_i))
            o[b, i, head] = sum((rho @ kappa_j) * v_j for kappa_j, v_j in zip(kappa, v_h, strict=True))
    return o


def cross_covariance_values(q, k, tau):
    alpha = np.zeros((len(q), *q.shape[2:], k.shape[-1]))
    for b, head, q_h, k_h, _ in heads(q, k, k):
        for i, q_i in enumerate(q_h.T):
            e = np.array([tau[head] * (q_i @ k_j) / np.sqrt(sum(q_i**2) * sum(k_j**2)) for k_j in k_h.T])
            alpha[b, head, i] = exponential(e) / sum(exponential(e))
    return alpha


def cross_covariance(q, k, v, tau):
    alpha = cross_covariance_values(q, k, tau)
    o = np.zeros((*v.shape[:3], q.shape[-1]))
    for b, head, _, _, v_h in heads(q, k, v):
        for i, j in itertools.product(range(q.shape[-1]), range(k.shape[-1])):
            o[b, :, head, i] += alpha[b, head, i, j] * v_h[:, j]
    return o


def our_linear(q, k, v):
    return ops.linear_attention(q, k, v, feature_map=ops.elu_plus_one, epsilon=EPSILON)


def our_cross_covariance(q, k, v, tau):
    return ops.cross_covariance_attention(q, k, v, temperature=tau)


CROSS_COVARIANCE = random((2, 7, 3, 6), (2, 7, 3, 4), (2, 5, 3, 4), (3,))
FORMS = {
    "linear": (our_linear, linear, tokens()),
    "efficient": (ops.efficient_attention, efficient, tokens()),
    "cross-covariance": (our_cross_covariance, cross_covariance, CROSS_COVARIANCE),
}


@pytest.mark.parametrize("form", FORMS)
def test_values_are_the_oracles(form):
    ours, oracle, arguments = FORMS[form]
    with jax.enable_x64():
        out = jax.jit(ours)(*map(jnp.array, arguments))
    np.testing.assert_allclose(out, oracle(*arguments), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_oracles_slopes(form):
    ours, oracle, arguments = FORMS[form]
    direction = random(*(a.shape for a in arguments), seed=1)
    (do,) = random(oracle(*arguments).shape, seed=2)
    with jax.enable_x64():
        gradients = jax.vjp(jax.jit(ours), *map(jnp.array, arguments))[1](jnp.array(do))
    for i, gradient in enumerate(gradients):  # one argument at a time, so that no error hides behind another
        alone = [d if i == j else np.zeros_like(d) for j, d in enumerate(direction)]
        slope = oracles.central_difference(lambda *a: (oracle(*a) * do).sum(), arguments, alone, step=1e-5)
        np.testing.assert_allclose((np.array(gradient) * alone[i]).sum(), slope, rtol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_accumulated_in_float32(form):
    ours, oracle, arguments = FORMS[form]
    narrow = [jnp.array(a, jnp.bfloat16) for a in arguments]
    out = jax.jit(ours)(*narrow)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), oracle(*map(np.float64, narrow)), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_takes_any_batch_axes(form):
    ours, _, arguments = FORMS[form]
    ours, arrays = jax.jit(ours), [np.float32(a) for a in arguments]
    batched = arrays[:3]
    expected = ours(*arrays)
    wider = [a[None] for a in batched] + arrays[3:]
    one = [a[0] for a in batched] + arrays[3:]
    np.testing.assert_allclose(ours(*wider)[0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours(*one), expected[0], rtol=1e-5, atol=1e-6)


def test_a_query_that_no_key_resembles_gets_zeros_and_finite_gradients():
    q, k, v = (np.float32(a) for a in tokens())
    q[:, 0] = -1.0
    attend = lambda *qkv: ops.linear_attention(*qkv, feature_map=jax.nn.relu)[:, 0]  # noqa: E731
    zeros = np.zeros((2, 3, 4), np.float32)
    out, *gradients = with_gradients(attend, (q, k, v), 1 + zeros)
    np.testing.assert_array_equal(out, zeros)
    assert all(np.isfinite(g).all() for g in gradients)


def test_elu_plus_one_has_finite_gradients_where_its_exponential_would_overflow():
    x = jnp.array([-200.0, -1.0, 0.0, 2.0, 200.0])
    np.testing.assert_allclose(ops.elu_plus_one(x), [0, np.exp(-1), 1, 3, 201], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(ops.elu_plus_one))(x), [0, np.exp(-1), 1, 1, 1], rtol=1e-6)


def test_no_array_has_two_axes_of_tokens():
    n, m = 101, 103
    for ours in (our_linear, ops.efficient_attention):
        arguments = [jnp.ones(shape) for shape in [(n, 3, 6), (m, 3, 6), (m, 3, 4)]]
        jaxpr = jax.make_jaxpr(jax.grad(lambda *a, ours=ours: ours(*a).sum(), argnums=(0, 1, 2)))(*arguments)
        shapes = [v.aval.shape for equation in jaxpr.eqns for v in equation.outvars]
        assert any(n in shape for shape in shapes)
        assert not any(n in shape and m in shape for shape in shapes)


def test_the_weights_of_cross_covariance_are_the_oracles():
    q, k, _, tau = CROSS_COVARIANCE
    with jax.enable_x64():
        alpha = ops.cross_covariance_weights(jnp.array(q), jnp.array(k), temperature=jnp.array(tau))
    np.testing.assert_allclose(alpha, cross_covariance_values(q, k, tau), rtol=1e-12)


def test_a_feature_of_zeros_is_attended_evenly_with_finite_gradients():
    q, k, v, _ = (jnp.float32(a) for a in CROSS_COVARIANCE)
    q = q.at[..., 0].set(0.0)
    alpha = ops.cross_covariance_weights(q, k, temperature=1.0)
    np.testing.assert_allclose(alpha[..., 0, :], np.full((2, 3, 4), 1 / 4), rtol=1e-6)
    _, gradient = with_gradients(
        lambda q: ops.cross_covariance_attention(q, k, v, temperature=1.0), (q,), jnp.ones((2, 5, 3, 6))
    )
    assert np.isfinite(gradient).all()


@pytest.mark.full
def test_cross_covariance_is_timms():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    torch.manual_seed(0)
    xca = timm_oracle.load("models.xcit").XCA(12, num_heads=3, qkv_bias=True).double()
    torch.nn.init.normal_(xca.temperature)
    x, do = random((2, 7, 12), (2, 7, 12))
    x_torch = torch.tensor(x, requires_grad=True)
    expected = xca(x_torch)
    (dx, dtau) = torch.autograd.grad(expected, (x_torch, xca.temperature), torch.tensor(do))
    weights = {name: p.detach().numpy() for name, p in xca.named_parameters()}

    def ours(x, tau):
        q, k, v = jnp.moveaxis((x @ weights["qkv.weight"].T + weights["qkv.bias"]).reshape(2, 7, 3, 3, 4), 2, 0)
        o = ops.cross_covariance_attention(q, k, v, temperature=tau).reshape(2, 7, 12)
        return o @ weights["proj.weight"].T + weights["proj.bias"]

    with jax.enable_x64():
        out, pull_back = jax.vjp(jax.jit(ours), jnp.array(x), jnp.array(weights["temperature"][:, 0, 0]))
        gradients = pull_back(jnp.array(do))
    np.testing.assert_allclose(out, expected.detach().numpy(), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(gradients[0], dx.numpy(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradients[1], dtau.numpy()[:, 0, 0], rtol=1e-9, atol=1e-12)


REFUSALS = {
    "features": (our_linear, [(7, 3, 6), (5, 3, 1), (5, 3, 4)], "axis -1 of q and axis -1 of k"),
    "heads": (our_linear, [(7, 3, 6), (5, 1, 6), (5, 1, 4)], "axis -2 of q and axis -2 of k"),
    "tokens": (our_linear, [(7, 3, 6), (5, 3, 6), (1, 3, 4)], "axis -3 of k and axis -3 of v"),
    "heads of the values": (
        ops.efficient_attention,
        [(7, 3, 6), (5, 3, 6), (5, 1, 4)],
        "axis -2 of k and axis -2 of v",
    ),
    "covariance, tokens": (
        our_cross_covariance,
        [(7, 3, 6), (1, 3, 4), (5, 3, 4), ()],
        "axis -3 of q and axis -3 of k",
    ),
    "covariance, heads": (our_cross_covariance, [(7, 1, 6), (7, 3, 4), (5, 3, 4), ()], "axis -2 of q and axis -2 of k"),
    "covariance, features": (
        our_cross_covariance,
        [(7, 3, 6), (7, 3, 4), (5, 3, 1), ()],
        r"axis -1 of k and axis -1 of v must be of one size, got shapes \(7, 3, 4\) and \(5, 3, 1\)",
    ),
    "covariance, heads of the values": (
        our_cross_covariance,
        [(7, 3, 6), (7, 3, 4), (5, 1, 4), ()],
        "axis -2 of k and axis -2 of v",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_it_is_refused(case):
    attend, shapes, message = REFUSALS[case]
    with pytest.raises(InputError, match=message):
        attend(*map(jnp.ones, shapes))
