"""Checkpoints: whole, bit for bit, kept as promised, refused or passed over when they are not what was written."""

import dataclasses
import itertools
import json
import random
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.tasks import Classification
from attn_flax.training import ArchitectureError, CheckpointError, Checkpoints, Learning, parallelize
from tests.training.networks import SmallNet, WideNet, plain, random_batches
from tests.training.toys import Mean, values

# Orbax forgets tasks when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LAYOUTS = {"one": ("jit", 1, None), "jit": ("jit", 8, None), "pmap": ("pmap", 8, None)} | {
    f"fsdp {8 // k}x{k}": ("fsdp", 8, k) for k in (1, 2, 8)
}


def runner_of(layout, task):
    how, devices, fsdp = LAYOUTS[layout]
    return parallelize(task, how, jax.devices()[:devices], fsdp=fsdp)


def wide_task(**arguments):
    learning = Learning(optax.adam(1e-2), ema_decay=0.9)
    return Classification(WideNet(**arguments, rngs=nnx.Rngs(1)), learning, 5)


def trained(task, runner, steps, batches=None):
    state = runner.place(task.init(jax.random.key(3)))
    for batch in batches or random_batches(steps, 16):
        state, _ = runner.update(state, runner.put(batch))
    return state


@pytest.fixture
def told():
    return []


@pytest.fixture
def saved(tmp_path, told):
    """Checkpoints of the steps 1 to 4 of which the first has the best score, and the state of each."""
    task, history = Mean(), {}
    runner = parallelize(task, "jit", jax.devices()[:1])
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, tell=told.append)
    state = runner.place(task.init(jax.random.key(0)))
    for step, batch in enumerate(values(4, 8), 1):
        state, _ = runner.update(state, runner.put(batch))
        history[step] = plain(state)
        score = {1: (0.9, -1.0), 2: (0.5, -2.0), 3: (0.9, -2.0)}.get(step)
        checkpoints.save(step, runner.portable(state), past=[{"loss": 0.1 * step}], score=score)
    checkpoints.close()
    return checkpoints, history


def like(task=None):
    task = task or Mean()
    return parallelize(task, "jit", jax.devices()[:1]).place(task.init(jax.random.key(5)))


QUICK = [("one", "fsdp 4x2"), ("pmap", "jit")]
PAIRS = [
    pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.full) for pair in itertools.product(LAYOUTS, LAYOUTS)
]


@pytest.mark.parametrize(("written", "read"), PAIRS)
def test_a_checkpoint_of_one_layout_is_restored_on_any_other(tmp_path, written, read):
    task = wide_task()
    runner = runner_of(written, task)
    state = trained(task, runner, 3)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, runner.portable(state))
    other = runner_of(read, task)
    blank = other.place(task.init(jax.random.key(5)))
    back = other.place(checkpoints.restore(other.portable(blank)).state)
    chex.assert_trees_all_equal(plain(other.fetch(back)), plain(runner.fetch(state)))
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(blank), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_the_latest_and_the_best_stay(saved, tmp_path):
    checkpoints, _ = saved
    assert checkpoints.steps == [1, 3, 4]
    assert {entry.name for entry in (tmp_path / "checkpoints").iterdir()} == {"1", "3", "4"}
    assert checkpoints.best_score == (0.9, -1.0)


def test_the_latest_and_the_best_are_restored_bit_for_bit(saved):
    checkpoints, history = saved
    latest, best = checkpoints.restore(like()), checkpoints.restore(like(), best=True)
    assert (latest.step, latest.past, best.step, best.past) == (4, [{"loss": 0.4}], 1, [{"loss": 0.1}])
    chex.assert_trees_all_equal(plain(latest.state), history[4])
    chex.assert_trees_all_equal(plain(best.state), history[1])
    assert np.abs(history[4].params["centre"] - history[1].params["centre"]).max() > 0.01


def test_scores_and_configuration_outlive_the_process(saved, tmp_path):
    again = Checkpoints(tmp_path / "checkpoints", config={"epochs": 3})
    assert again.best_score == (0.9, -1.0)
    assert again.restore(like(), best=True).step == 1
    state = like()
    again.save(5, state, score=(0.95, 0.0))
    again.close()
    assert again.steps == [4, 5]
    record = json.loads((tmp_path / "checkpoints" / "5" / "record" / "metadata").read_text())["record"]
    assert json.loads(record)["config"] == {"epochs": 3}


def test_leaves_are_read_by_their_names(saved):
    checkpoints, history = saved
    step, leaves = checkpoints.read()
    assert step == 4
    assert set(leaves) == {"step", "params.centre", "model_state.rows", "opt_state.0.trace.centre", "key"}
    np.testing.assert_array_equal(leaves["opt_state.0.trace.centre"], history[4].opt_state[0].trace["centre"])


def test_the_next_step_does_not_change_what_is_being_written(tmp_path):
    task = wide_task()
    runner = runner_of("one", task)
    checkpoints, state = Checkpoints(tmp_path, keep=9), runner.place(task.init(jax.random.key(3)))
    history = {}
    for step, batch in enumerate(random_batches(6, 16), 1):
        state, _ = runner.update(state, runner.put(batch))
        history[step] = plain(state)
        checkpoints.save(step, runner.portable(state))
    checkpoints.close()
    for step in history:
        chex.assert_trees_all_equal(plain(checkpoints.restore(state).state), history[checkpoints.steps[-1]])
        checkpoints.forget_after(max(history) - step)
        if not checkpoints.steps:
            break


def files_of(folder, step):
    """The files that hold the arrays."""
    return [path for path in (folder / "checkpoints" / str(step) / "state").rglob("d/*") if path.is_file()]


def flip(path, place, bit):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.full
def test_no_flipped_bit_is_restored(tmp_path, told):
    task = wide_task()
    runner = runner_of("one", task)
    state = trained(task, runner, 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", tell=told.append)
    checkpoints.save(2, runner.portable(state))
    checkpoints.close()
    rng = random.Random(0)
    shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "kept")
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.stat().st_size]
    outcomes = []
    for _ in range(60):
        shutil.rmtree(tmp_path / "checkpoints" / "2")
        shutil.copytree(tmp_path / "kept", tmp_path / "checkpoints" / "2")
        path = rng.choices(files, [file.stat().st_size for file in files])[0]
        flip(
            tmp_path / "checkpoints" / "2" / path.relative_to(tmp_path / "kept"),
            rng.randrange(path.stat().st_size),
            rng.randrange(8),
        )
        try:
            restored = Checkpoints(tmp_path / "checkpoints", tell=told.append).restore(state)
        except CheckpointError:
            outcomes.append("refused")
        else:
            chex.assert_trees_all_equal(plain(restored.state), plain(state))
            outcomes.append("harmless")
    assert outcomes.count("refused") > 20


def damages():
    return {
        "a flipped bit": lambda path: flip(path, path.stat().st_size // 2, 3),
        "the end cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "nothing in it": lambda path: path.write_bytes(b""),
        "gone": Path.unlink,
    }


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("part", ["state", "record"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_taken(saved, tmp_path, told, damage, part):
    _, history = saved
    record = tmp_path / "checkpoints" / "4" / "record" / "metadata"
    for file in files_of(tmp_path, 4) if part == "state" else [record]:
        damages()[damage](file)
    checkpoints = Checkpoints(tmp_path / "checkpoints", tell=told.append)
    restored = checkpoints.restore(like())
    assert restored.step == 3
    chex.assert_trees_all_equal(plain(restored.state), history[3])
    (message,) = told
    assert message.startswith("checkpoint 4 is damaged and not used: ")
    checkpoints.forget_after(3)
    checkpoints.save(4, like())
    assert checkpoints.restore(like()).step == 4


def test_a_damaged_best_gives_way_to_the_next_best(saved, tmp_path, told):
    for file in files_of(tmp_path, 1):
        damages()["the end cut off"](file)
    checkpoints = Checkpoints(tmp_path / "checkpoints", tell=told.append)
    assert checkpoints.restore(like(), best=True).step == 3
    assert "checkpoint 1 is damaged" in told[0]


def test_without_an_intact_one_there_is_an_error(saved, tmp_path, told):
    for step in (1, 3, 4):
        damages()["nothing in it"](tmp_path / "checkpoints" / str(step) / "record" / "metadata")
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint was found in .*: expected at least one, got 3 damag"
    ):
        Checkpoints(tmp_path / "checkpoints", tell=told.append).restore(like())
    with pytest.raises(CheckpointError, match="expected at least one, got none"):
        Checkpoints(tmp_path / "empty", tell=told.append).restore(like())


def test_what_a_dying_process_left_is_no_checkpoint_and_cleaned_up(saved, tmp_path):
    left = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "4", left)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(like()).step == 4
    checkpoints.save(5, like())
    checkpoints.close()
    assert checkpoints.steps == [1, 4, 5]
    assert not left.exists()


def test_a_reader_leaves_what_another_process_writes(saved, tmp_path):
    _, history = saved
    being_written = tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "4", being_written)
    reader = Checkpoints(tmp_path / "checkpoints", read_only=True)
    chex.assert_trees_all_equal(plain(reader.restore(like()).state), history[4])
    assert reader.read(best=True)[0] == 1
    assert being_written.exists()


def test_another_architecture_is_refused_by_path_and_shape(tmp_path):
    checkpoints, task = Checkpoints(tmp_path), wide_task()
    runner = runner_of("one", task)
    checkpoints.save(1, runner.place(task.init(jax.random.key(0))))
    other = wide_task(width=60)
    with pytest.raises(ArchitectureError) as caught:
        checkpoints.restore(runner_of("one", other).place(other.init(jax.random.key(0))))
    message = str(caught.value)
    assert "checkpoint 1 is that of another network or optimiser" in message
    assert "params.hidden.kernel: expected float32(3, 60), got float32(3, 64)" in message
    assert "params.out.kernel" not in message
    assert "and 12 more" in message
    without = Classification(task.model, dataclasses.replace(task.learning, ema_decay=0.0), 5)
    with pytest.raises(ArchitectureError, match=r"ema\.0\.hidden\.bias: expected nothing, got float32\(64,\)"):
        checkpoints.restore(runner_of("one", without).place(without.init(jax.random.key(0))))


def test_a_network_without_state(tmp_path):
    task = Mean(stateless=True)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, like(task))
    restored = checkpoints.restore(like(task))
    assert restored.state.model_state == {}
    np.testing.assert_array_equal(restored.state.params["centre"], like(task).params["centre"])


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoints in .*/file/checkpoints cannot be opened: "):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_vanished_folder_is_an_error_that_says_so(saved, tmp_path):
    checkpoints, _ = saved
    shutil.rmtree(tmp_path / "checkpoints")
    checkpoints.save(5, like())
    with pytest.raises(CheckpointError, match=r"checkpoints in .* cannot be written: the folder has vanished"):
        checkpoints.close()


@pytest.mark.full
def test_dropout_and_batch_statistics_go_on_as_they_would(tmp_path):
    task = Classification(SmallNet(dropout=0.3, rngs=nnx.Rngs(1)), Learning(optax.adam(0.01), ema_decay=0.9), 5)
    for how, devices in (("jit", 1), ("jit", 8), ("pmap", 8)):
        runner = parallelize(task, how, jax.devices()[:devices])
        batches = list(random_batches(5, 16))
        whole = trained(task, runner, 5, batches)
        checkpoints = Checkpoints(tmp_path / f"{how}{devices}")
        checkpoints.save(2, runner.portable(trained(task, runner, 2, batches[:2])))
        state = runner.place(checkpoints.restore(runner.portable(runner.place(task.init(jax.random.key(9))))).state)
        for batch in batches[2:]:
            state, _ = runner.update(state, runner.put(batch))
        chex.assert_trees_all_equal(plain(runner.fetch(state)), plain(runner.fetch(whole)))
