"""attention_maps against attention_map called by hand on inputs computed by hand."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.explain import attention_maps
from attn_flax.models import create_model
from attn_flax.nn import Article, ArticleGate


class Gate(nnx.Module):
    """Attends by a sigmoid; drops half of its output in training."""

    def __init__(self, channels, *, rngs):
        self.linear = nnx.Linear(channels, channels, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def attention_map(self, x, *, mask=None):
        weights = nnx.sigmoid(self.linear(x))
        return weights if mask is None else weights * mask

    def __call__(self, x, *, mask=None):
        return self.dropout(x * self.attention_map(x, mask=mask))


class HeirGate(Gate):
    """Inherits its `__call__`."""


class NestedGate(Gate):
    """Attends with the output of another attending Module."""

    def __init__(self, channels, *, rngs):
        super().__init__(channels, rngs=rngs)
        self.inner = HeirGate(channels, rngs=rngs)

    def attention_map(self, x, *, mask=None):
        return super().attention_map(self.inner(x), mask=mask)


class RandomGate(Gate):
    """Draws its map from its random state, also in evaluation."""

    def attention_map(self, x, *, mask=None):
        return self.dropout(x, deterministic=False)


@nnx.jit
def call_nnx_jit(module, x):
    return module(x)


@jax.jit
def call_jit(module, x):
    return module(x)


CALLS = {
    "plain": lambda module, x: module(x),
    "nnx.jit": call_nnx_jit,
    "jit": call_jit,
    "nnx.remat": nnx.remat(lambda module, x: module(x)),
    "nnx.remat of the method": lambda module, x: nnx.remat(type(module).__call__)(module, x),
    "checkpoint": lambda module, x: jax.checkpoint(lambda x: module(x))(x),
    "remat in jit": nnx.jit(nnx.remat(lambda module, x: module(x))),
    "grad of checkpoint": lambda module, x: x + 0 * jax.grad(lambda x: jax.checkpoint(module)(x).sum())(x),
}


class Stack(nnx.Module):
    """Normalises, then calls its gates in turn, however `call` does it."""

    def __init__(self, gates, call, *, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.gates = nnx.List(gates)
        self.call = call

    def __call__(self, x):
        x = self.norm(x)
        for gate in self.gates:
            x = self.call(gate, x)
        return x


def make_stack(call="plain", gate=HeirGate):
    rngs = nnx.Rngs(0)
    stack = Stack([gate(4, rngs=rngs) for _ in range(2)], CALLS[call], rngs=rngs)
    stack.norm.mean[...] = jnp.array([0.1, -0.2, 0.3, 0.0])
    return stack


def random(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def leaves(model):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(nnx.state(model))
    ]


def weights_by_hand(gate, x):
    return 1 / (1 + np.exp(-(np.asarray(x, np.float64) @ gate.linear.kernel[...] + gate.linear.bias[...])))


def gates_by_hand(stack, x):
    """The gates' maps in evaluation, in float64 NumPy."""
    x = (np.asarray(x, np.float64) - stack.norm.mean[...]) / np.sqrt(np.asarray(stack.norm.var[...]) + 1e-5)
    maps = []
    for gate in stack.gates:
        maps.append(weights_by_hand(gate, x))
        x = x * maps[-1]
    return maps


def assert_close(got, expected):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("call", [call for call in CALLS if call != "grad of checkpoint"])
def test_maps_equal_those_by_hand(call):
    stack, x = make_stack(call), random(3, 7, 5, 4)
    maps = attention_maps(stack, x)
    assert list(maps) == ["gates.0", "gates.1"]
    for got, expected in zip(maps.values(), gates_by_hand(stack, x), strict=True):
        assert_close(got, expected)


def test_a_call_under_grad_of_a_checkpoint_has_its_map():
    stack, x = make_stack("grad of checkpoint"), random(3, 4)
    assert_close(attention_maps(stack, x)["gates.0"], gates_by_hand(stack, x)[0])


@pytest.mark.parametrize("call", CALLS)
def test_the_network_stays_as_it_is(call):
    stack, x = make_stack(call), random(3, 4)
    before, types = leaves(stack), [type(module) for _, module in nnx.iter_modules(stack)]
    attributes = [sorted(vars(module)) for _, module in nnx.iter_modules(stack)]
    attention_maps(stack, x)
    for was, now in zip(before, leaves(stack), strict=True):
        np.testing.assert_array_equal(was, now)
    assert [type(module) for _, module in nnx.iter_modules(stack)] == types
    assert [sorted(vars(module)) for _, module in nnx.iter_modules(stack)] == attributes
    assert not stack.norm.use_running_average
    assert not stack.gates[0].dropout.deterministic


def test_twice_the_same_and_after_tabulate():
    stack, x = make_stack("nnx.jit"), random(3, 4)
    before = attention_maps(stack, x)
    nnx.tabulate(stack, x)
    after = attention_maps(stack, x)
    assert list(before) == list(after)
    for path in before:
        np.testing.assert_array_equal(before[path], after[path])


def test_the_articles_mechanisms_in_their_network():
    for mechanism, shape in ((ArticleGate, (2, 7, 5, 64)), (Article, (2, 35, 35))):
        model = create_model("attention_net", num_classes=10, attention=mechanism, rngs=nnx.Rngs(0))
        x = random(2, 7, 5, 3)
        maps = attention_maps(model, x)
        assert maps.keys() == {"attention"}
        assert maps["attention"].shape == shape
        np.testing.assert_array_equal(maps["attention"], model.attention.attention_map(model.conv1(x)))


@pytest.mark.parametrize("call", ["plain", "nnx.jit", "jit", "checkpoint"])
def test_every_call_of_a_shared_module_has_its_map(call):
    gate, x = Gate(4, rngs=nnx.Rngs(0)), random(3, 4)
    maps = attention_maps(Stack([gate, gate, gate], CALLS[call], rngs=nnx.Rngs(1)), x)
    assert list(maps) == ["gates.0", "gates.0#1", "gates.0#2"]
    x = np.asarray(x, np.float64) / np.sqrt(1 + 1e-5)
    for got in maps.values():
        assert_close(got, weights_by_hand(gate, x))
        x = x * weights_by_hand(gate, x)


def test_calls_are_in_the_order_of_the_network():
    class Backwards(nnx.Module):
        def __init__(self, *, rngs):
            self.gates = nnx.List([Gate(4, rngs=rngs) for _ in range(12)])

        def __call__(self, x):
            for i, gate in enumerate(reversed(self.gates)):
                x = call_jit(gate, x) if i % 2 else gate(x)
            return x

    maps = attention_maps(Backwards(rngs=nnx.Rngs(0)), random(3, 4))
    assert list(maps) == [f"gates.{i}" for i in reversed(range(12))]


def test_a_sequential_network():
    network = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), Gate(4, rngs=nnx.Rngs(1)))
    x = random(5, 3)
    maps = attention_maps(network, x)
    assert list(maps) == ["layers.1"]
    assert_close(maps["layers.1"], weights_by_hand(network.layers[1], network.layers[0](x)))


def test_nested_modules_and_the_network_itself():
    gate, x = NestedGate(4, rngs=nnx.Rngs(0)), random(3, 4)
    maps = attention_maps(gate, x)
    assert list(maps) == ["", "inner"]
    inner = weights_by_hand(gate.inner, x)
    assert_close(maps["inner"], inner)
    assert_close(maps[""], weights_by_hand(gate, x * inner))


def test_keyword_inputs():
    gate, x, mask = Gate(4, rngs=nnx.Rngs(0)), random(3, 4), jnp.array([1.0, 0.0, 1.0, 0.5])
    assert_close(attention_maps(gate, x, mask=mask)[""], weights_by_hand(gate, x) * mask)


def test_a_random_map_is_the_one_the_call_used():
    gate, x = RandomGate(4, rngs=nnx.Rngs(0)), random(64, 4)
    weights = attention_maps(gate, x)[""]
    gate.dropout.deterministic = True
    np.testing.assert_array_equal(x * weights, gate(x))


def test_scanned_and_mapped_layers_have_a_map_each():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make_layers(rngs):
        return Gate(4, rngs=rngs)

    class Layers(nnx.Module):
        def __init__(self, transform):
            self.layers, self.transform = make_layers(nnx.Rngs(0)), transform

        def __call__(self, x):
            return self.transform(lambda x, layer: layer(x))(x, self.layers)

    def scan(f):
        return nnx.scan(f, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)

    def vmap(f):
        return nnx.vmap(f, in_axes=(None, 0))

    x = np.asarray(random(5, 4))
    for transform, carried in ((scan, True), (vmap, False)):
        network = Layers(transform)
        maps = attention_maps(network, jnp.asarray(x))
        assert list(maps) == ["layers", "layers#1", "layers#2"]
        kernels, biases = network.layers.linear.kernel[...], network.layers.linear.bias[...]
        y = x
        for got, kernel, bias in zip(maps.values(), kernels, biases, strict=True):
            expected = 1 / (1 + np.exp(-(y @ kernel + bias)))
            assert_close(got, expected)
            y = y * expected if carried else y


def test_what_does_not_attend_or_is_not_called_is_absent():
    class Idle(nnx.Module):
        def __init__(self, *, rngs):
            self.idle, self.linear = Gate(4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return self.linear(x)

    assert attention_maps(Idle(rngs=nnx.Rngs(0)), random(3, 4)) == {}
    assert attention_maps(create_model("attention_net", attention=None, rngs=nnx.Rngs(0)), random(1, 8, 8, 3)) == {}


def test_maps_of_inputs_over_all_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    stack, x = make_stack("nnx.jit"), random(8, 4)
    maps = attention_maps(stack, jax.device_put(x, sharding))
    for got, expected in zip(maps.values(), gates_by_hand(stack, x), strict=True):
        assert_close(got, expected)


def test_maps_do_not_load_matplotlib():
    code = "import sys, attn_flax.explain as e; e.attention_maps; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
