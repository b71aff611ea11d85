"""The same numbers wherever the step runs, batch statistics and dropout included."""

import functools
import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.tasks import Classification
from attn_flax.training import Checkpoints, Learning, leaf_names, parallelize
from attn_flax.training.leaves import is_key
from tests.processes import in_two_processes
from tests.replicas import trained_in_replicas
from tests.training.networks import SmallNet, WideNet, random_batches

STEPS = 20
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
BATCH = 16


@pytest.fixture(params=["float64", pytest.param("float32", marks=pytest.mark.full)])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@functools.cache
def task(dtype, dropout):
    learning = Learning(optax.sgd(0.1, momentum=0.9), ema_decay=0.9)
    return Classification(SmallNet(dropout=dropout, dtype=dtype, rngs=nnx.Rngs(1)), learning, 5, label_smoothing=0.1)


def run(runner, state):
    """The state after the steps and the losses on the way, as one device has them."""
    state, losses = runner.place(state), []
    dtype = jax.tree.leaves(state.params)[0].dtype
    for batch in random_batches(STEPS, BATCH, dtype=dtype):
        state, metrics = runner.update(state, runner.put(batch))
        losses.append(runner.fetch(metrics)["loss"])
    return runner.fetch(state), np.array(losses)


@functools.cache
def trained(how, devices, dtype, dropout):
    a_task = task(dtype, dropout)
    return run(parallelize(a_task, how, jax.devices()[:devices]), a_task.init(jax.random.key(3)))


def assert_equal_runs(run_a, run_b, dtype):
    (state_a, losses_a), (state_b, losses_b) = run_a, run_b
    np.testing.assert_allclose(losses_a, losses_b, rtol=0, atol=TOLERANCE[dtype])
    kept = [(s.params, s.model_state, s.opt_state, s.ema) for s in (state_a, state_b)]
    for a, b in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype])
    assert int(state_a.step) == int(state_b.step) == STEPS


def wide_task(dtype):
    model = WideNet(dropout=0.3, dtype=dtype, rngs=nnx.Rngs(1))
    return Classification(model, Learning(optax.sgd(0.1, momentum=0.9), ema_decay=0.9), 5)


@functools.cache
def wide_trained(how, devices, fsdp, dtype):
    a_task = wide_task(dtype)
    return run(parallelize(a_task, how, jax.devices()[:devices], fsdp=fsdp), a_task.init(jax.random.key(3)))


@pytest.mark.parametrize("fsdp", [2, *(pytest.param(n, marks=pytest.mark.full) for n in (1, 8))])
def test_a_spread_state_agrees_with_one_device_dropout_on(fsdp, dtype):
    """The meshes 8×1, 4×2 and 1×8."""
    assert_equal_runs(wide_trained("jit", 1, None, dtype), wide_trained("fsdp", 8, fsdp, dtype), dtype)


def bytes_on(device):
    """What the living arrays take of a device, each buffer counted once."""
    gc.collect()
    live = [x for x in jax.live_arrays() if not is_key(x)]
    parts = [shard.data for x in live for shard in x.addressable_shards if shard.device == device]
    return sum({part.unsafe_buffer_pointer(): part.nbytes for part in parts}.values())


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (2, 4), (1, 8)])
def test_a_spread_state_takes_its_share_of_each_device(data, fsdp):
    a_task = wide_task("float32")
    runner = parallelize(a_task, "fsdp", fsdp=fsdp)
    before = bytes_on(jax.devices()[3])
    state = runner.place(a_task.init(jax.random.key(3)))
    for batch in random_batches(STEPS, BATCH):
        put = runner.put(batch)
        state, metrics = runner.update(state, put)
    assert {shard.data.shape[0] for shard in put["image"].addressable_shards} == {BATCH // 8}
    large = [x for x in jax.tree.leaves((state.params, state.opt_state, state.ema)) if x.size >= 4096]
    assert len(large) == 3  # the kernel, its moment and its average
    for x in large:
        assert {shard.data.size for shard in x.addressable_shards} == {x.size // fsdp}
        assert len({str(shard.index) for shard in x.addressable_shards}) == fsdp
    whole = sum(x.nbytes for x in jax.tree.leaves(state) if not is_key(x))
    spread = sum(x.nbytes for x in large)
    del put, metrics, batch
    held = bytes_on(jax.devices()[3]) - before
    assert abs(held - (whole - spread + spread // fsdp)) < 64  # the random key
    arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    compiled = runner.update.lower(arguments, runner.put(next(random_batches(1, BATCH)))).compile()
    taken = compiled.memory_analysis().argument_size_in_bytes
    batch_bytes = BATCH // 8 * (7 * 6 * 3 * 4 + 4)
    assert abs(taken - held - batch_bytes) < 1024  # alignment, and the random key


@pytest.mark.full
@pytest.mark.parametrize(
    ("how", "fsdp"),
    [("fsdp", 2), ("pmap", None), ("jit", None), ("fsdp", 8)],
)
def test_two_processes_agree_with_one_device_and_save_for_it(tmp_path, how, fsdp):
    reference = ("pmap", 8) if how == "pmap" else ("jit", 1)  # pmap's devices draw other numbers
    outputs = in_two_processes("tests.training.two_processes", how, fsdp or 0, "float32", tmp_path / "checkpoints")
    state, expected = wide_trained(*reference, None, "float32")
    for output in outputs:
        losses = [float(loss) for loss in re.findall(r"loss (\S+) ", output)]  # other libraries write between the lines
        np.testing.assert_allclose(losses, expected, rtol=0, atol=TOLERANCE["float32"])
    _, leaves = Checkpoints(tmp_path / "checkpoints").read()
    for name, leaf in zip(leaf_names(state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(leaves[f"params.{name}"], leaf, rtol=0, atol=TOLERANCE["float32"])


@pytest.mark.parametrize("devices", [2, 8])
def test_a_mesh_agrees_with_one_device_dropout_on(devices, dtype):
    assert_equal_runs(trained("jit", 1, dtype, 0.3), trained("jit", devices, dtype, 0.3), dtype)


@pytest.mark.parametrize("devices", [1, 8])
def test_pmap_agrees_with_one_device_dropout_off(devices, dtype):
    assert_equal_runs(trained("jit", 1, dtype, 0.0), trained("pmap", devices, dtype, 0.0), dtype)


def test_pmap_agrees_with_vmap_of_the_same_step_dropout_on(dtype):
    batches = random_batches(STEPS, BATCH, dtype=dtype)
    state, metrics = trained_in_replicas(task(dtype, 0.3), batches, key=jax.random.key(3), atol=1e-12)
    losses = np.array([seen["loss"] for seen in metrics])
    assert_equal_runs((state, losses), trained("pmap", 8, dtype, 0.3), dtype)


def test_pmap_devices_draw_different_dropout_masks():
    class Dropped(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.linear = nnx.Linear(3, 5, rngs=rngs)

        def __call__(self, x):
            return self.linear(self.dropout(x).mean((1, 2)))

    a_task = Classification(Dropped(nnx.Rngs(0)), Learning(optax.sgd(1.0)), 5)
    row = next(random_batches(1, 1))

    def kernel_after(devices):
        runner = parallelize(a_task, "pmap", jax.devices()[:devices])
        same_rows = jax.tree.map(lambda x: np.repeat(x, devices, 0), row)
        state, _ = runner.update(runner.place(a_task.init(jax.random.key(0))), runner.put(same_rows))
        return runner.fetch(state).params["linear"]["kernel"]

    # Were all masks equal, eight copies of a row would move the kernel as one does.
    assert not np.allclose(kernel_after(8), kernel_after(1), atol=1e-3)


def test_accumulated_parts_give_the_whole_batch_step(dtype):
    """With neither dropout nor batch statistics; compared are the states after the steps."""

    class Plain(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 5, param_dtype=dtype, rngs=rngs)

        def __call__(self, x):
            return self.linear(jnp.tanh(x)).mean((1, 2))

    def finished(accumulate, devices):
        learning = Learning(optax.adam(0.01), accumulate=accumulate)
        a_task = Classification(Plain(nnx.Rngs(0)), learning, 5)
        return run(parallelize(a_task, "jit", jax.devices()[:devices]), a_task.init(jax.random.key(0)))

    for devices in (1, 4):
        assert_equal_runs(finished(1, 1), finished(4, devices), dtype)


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_evaluation_sums_are_those_of_one_device(how):
    a_task = task("float32", 0.5)
    state = a_task.init(jax.random.key(0))
    batch = next(random_batches(1, BATCH)) | {"weight": np.array([1.0] * 13 + [0.0] * 3, np.float32)}
    expected = a_task.evaluate(state, batch)
    runner = parallelize(a_task, how)
    sums = runner.fetch(runner.evaluate(runner.place(state), runner.put(batch)))
    np.testing.assert_allclose(sums["confusion"], expected["confusion"])
    np.testing.assert_allclose(sums["loss"], expected["loss"], rtol=1e-5)
    assert float(sums["confusion"].sum()) == 13


@pytest.mark.parametrize("how", ["jit", "pmap"])
def test_a_fetched_state_can_be_placed_again(how):
    a_task = task("float32", 0.0)
    runner = parallelize(a_task, how)
    one, two = random_batches(2, BATCH)

    def trained(state, *batches):
        state = runner.place(state)
        for batch in batches:
            state, _ = runner.update(state, runner.put(batch))
        return runner.fetch(state)

    without_break = trained(a_task.init(jax.random.key(0)), one, two)
    with_break = trained(trained(a_task.init(jax.random.key(0)), one), two)
    for a, b in zip(jax.tree.leaves(without_break.params), jax.tree.leaves(with_break.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("how", ["jit", "pmap"])
@pytest.mark.parametrize("batch_size", [4, 12])
def test_a_batch_that_devices_cannot_share_is_refused(how, batch_size):
    runner = parallelize(task("float32", 0.0), how)
    with pytest.raises(InputError, match=f"multiple of the device count, got batch size {batch_size} on 8 devices"):
        runner.put(next(random_batches(1, batch_size)))
