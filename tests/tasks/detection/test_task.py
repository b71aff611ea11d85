"""The detection task against naive sums, on one device and on several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.tasks import Detection
from attn_flax.training import Learning, parallelize
from tests.replicas import trained_in_replicas
from tests.tasks.detection import naive

CLASSES, QUERIES, MOST, LAYERS, GROUPS = 5, 9, 4, 2, 3
WEIGHTS = naive.WEIGHTS
kinds = pytest.mark.parametrize("logits", [CLASSES, CLASSES + 1], ids=["focal", "softmax"])


class Says(nnx.Module):
    """A detector whose answers to each of b images are its parameters, those of denoising queries too."""

    num_classes = CLASSES

    def __init__(self, batch, logits, dtype="float64"):
        rng = np.random.default_rng(0)
        for name, shape in (
            ("layers", (LAYERS, batch, QUERIES)),
            ("proposals", (batch, 11)),
            ("denoised", (LAYERS, batch, GROUPS * MOST)),
        ):
            said = rng.normal(scale=2, size=(*shape, logits))
            answers = {"logits": said, "boxes": rng.uniform(0.05, 0.9, (*shape, 4))}
            setattr(self, name, nnx.Dict({key: nnx.Param(jnp.asarray(x, dtype)) for key, x in answers.items()}))

    def __call__(self, images, noised=None):
        found = {**self._of("layers"), "proposals": self._of("proposals")}
        if noised is not None:
            labels, boxes, sees = noised
            assert labels.shape == boxes.shape[:-1] == sees.shape[:-1] == (len(images), GROUPS * MOST)
            found["denoised"] = self._of("denoised")
        return found

    def _of(self, name):
        return {key: value[...] for key, value in getattr(self, name).items()}


class Linear(nnx.Module):
    """A detector that is linear in the mean colour of its image, and in denoising queries where there are some."""

    num_classes = CLASSES

    def __init__(self, *, logits=CLASSES, dtype="float32", rngs):
        self.layer = nnx.Linear(3, LAYERS * QUERIES * (logits + 4), param_dtype=dtype, rngs=rngs)
        self.noised = nnx.Linear(5, logits + 4, param_dtype=dtype, rngs=rngs)
        self.logits = logits

    def __call__(self, images, noised=None):
        out = self.layer(images.mean((1, 2))).reshape(-1, LAYERS, QUERIES, self.logits + 4)
        found = self._split(jnp.moveaxis(out, 1, 0))
        if noised is not None:
            labels, boxes, _ = noised
            queries = jnp.concatenate([labels[..., None].astype(boxes.dtype), boxes], -1)
            found["denoised"] = self._split(self.noised(queries)[None])
        return found

    def _split(self, out):
        return {"logits": out[..., :-4], "boxes": jax.nn.sigmoid(out[..., -4:])}


def batch_of(counts, seed=0, dtype="float32"):
    rng = np.random.default_rng(seed)
    labels, boxes = naive.scene(rng, counts, MOST, CLASSES)
    return {
        "image": rng.normal(size=(len(counts), 6, 5, 3)).astype(dtype),
        "labels": labels,
        "boxes": boxes.astype(dtype),
    }


def detect(model, **arguments):
    return Detection(model, Learning(optax.sgd(1e-2)), **arguments)


def total_of(params, batch, groups):
    out = {**params["layers"], "proposals": params["proposals"], "denoised": params["denoised"]}
    return naive.loss(out, batch["labels"], batch["boxes"], CLASSES, groups)


@kinds
@pytest.mark.parametrize("groups", [0, GROUPS])
@pytest.mark.parametrize("counts", [(0, 1, 4, 3), (0, 0, 0, 0)], ids=["some", "none"])
def test_a_step_follows_the_naive_loss(logits, groups, counts):
    with jax.enable_x64():
        task, batch = detect(Says(4, logits), denoising=groups), batch_of(counts, dtype="float64")
        state = task.init(jax.random.key(0))
        after, metrics = jax.jit(task.update)(state, batch)
        params = jax.tree.map(np.asarray, state.params)
        expected, last = total_of(params, batch, groups)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-9)
        for name, of_naive in {"classes_loss": "class", "l1_loss": "l1", "giou_loss": "giou"}.items():
            np.testing.assert_allclose(metrics[name], last[of_naive], rtol=1e-9, atol=1e-12)
        gradient = jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / 1e-2, state.params, after.params)
        rng = np.random.default_rng(1)
        direction = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        ahead, behind = (
            total_of(jax.tree.map(lambda p, d, s=s: p + s * d, params, direction), batch, groups)[0]
            for s in (1e-6, -1e-6)
        )
        slope = sum((g * d).sum() for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-5)


@kinds
def test_evaluation_counts_images_by_weight(logits):
    task, batch = detect(Says(5, logits, "float32"), denoising=GROUPS), batch_of((2, 0, 4, 1, 3))
    weight = np.array([1, 1, 0, 1, 0], np.float32)
    state = task.init(jax.random.key(0))
    sums = jax.device_get(jax.jit(task.evaluate)(state, batch | {"weight": weight}))
    metrics, kept = task.summarize(sums), weight > 0
    last = [np.asarray(state.params["layers"][name])[-1, kept] for name in ("logits", "boxes")]
    expected = naive.parts(*last, batch["labels"][kept], batch["boxes"][kept], CLASSES)
    np.testing.assert_allclose(metrics["loss"], naive.total(expected), rtol=1e-5)
    for name, of_naive in {"classes_loss": "class", "l1_loss": "l1", "giou_loss": "giou"}.items():
        np.testing.assert_allclose(metrics[name], expected[of_naive], rtol=1e-5)
    assert 0 <= metrics["ap"] <= metrics["ap50"] < 1


def test_who_finds_everything_has_an_average_precision_of_one():
    """Only the images that count are looked at: the last one's answers are wrong."""
    batch = batch_of((2, 4, 1, 3))
    model = Says(4, CLASSES, "float32")
    logits = np.full((LAYERS, 4, QUERIES, CLASSES), -9.0, np.float32)
    boxes = np.full((LAYERS, 4, QUERIES, 4), 0.5, np.float32)
    logits[:, :3, :MOST] = 18 * np.eye(CLASSES)[batch["labels"][:3]] * (batch["labels"][:3, :, None] >= 0) - 9
    boxes[:, :, :MOST] = batch["boxes"]
    model.layers["logits"][...], model.layers["boxes"][...] = jnp.asarray(logits), jnp.asarray(boxes)
    task = detect(model)
    state, evaluate = task.init(jax.random.key(0)), jax.jit(task.evaluate)

    def metrics(weight):
        return task.summarize(jax.device_get(evaluate(state, batch | {"weight": np.array(weight, np.float32)})))

    right = metrics([1, 1, 1, 0])
    assert [right[name] for name in ("ap", "ap50", "ap75")] == pytest.approx([1, 1, 1])
    assert right["loss"] < 1e-3
    assert metrics([1, 1, 1, 1])["ap"] < 0.9


def test_scores_rank_by_precision_and_among_equals_by_loss():
    score = detect(Linear(rngs=nnx.Rngs(0))).score
    worst_first = [(0.5, 0.1), (0.9, 0.4), (0.9, 0.3), (0.95, 2.0)]
    scores = [score({"ap": ap, "loss": loss}) for ap, loss in worst_first]
    assert scores == sorted(scores)
    assert len(set(scores)) == 4


def batches(dtype):
    for seed in range(4):
        counts = np.random.default_rng(seed).integers(0, MOST + 1, 16)
        counts[: 2 * seed] = 0  # some devices have no object at all
        yield batch_of(counts, seed=seed, dtype=dtype)


@functools.cache
def trained(how, devices, logits, groups, accumulate=1):
    with jax.enable_x64():
        learning = Learning(optax.sgd(0.1, momentum=0.9), accumulate=accumulate)
        task = Detection(Linear(logits=logits, dtype="float64", rngs=nnx.Rngs(1)), learning, denoising=groups)
        runner = parallelize(task, how, jax.devices()[:devices])
        state, metrics = runner.place(task.init(jax.random.key(3))), []
        for batch in batches("float64"):
            state, seen = runner.update(state, runner.put(batch))
            metrics.append(runner.fetch(seen))
        weighted = batch | {"weight": np.array([1.0] * 13 + [0.0] * 3)}
        sums = runner.fetch(runner.evaluate(state, runner.put(weighted)))
        return jax.device_get((runner.fetch(state).params, metrics, sums))


def assert_equal(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, other)


@kinds
@pytest.mark.full
def test_a_mesh_agrees_with_one_device(logits):
    assert_equal(trained("jit", 8, logits, GROUPS), trained("jit", 1, logits, GROUPS))


@kinds
@pytest.mark.full
def test_pmap_agrees_with_one_device_without_denoising(logits):
    """Images have 0 to 4 objects, and some devices none at all."""
    assert_equal(trained("pmap", 8, logits, 0), trained("jit", 1, logits, 0))


@pytest.mark.full
@kinds
def test_accumulated_parts_give_the_whole_batch_step(logits):
    one, parts = trained("jit", 1, logits, 0), trained("jit", 1, logits, 0, accumulate=4)
    assert_equal(parts[0], one[0])
    assert_equal([m["loss"] for m in parts[1]], [m["loss"] for m in one[1]])


@pytest.mark.full
def test_pmap_agrees_with_vmap_of_the_same_step_with_denoising():
    with jax.enable_x64():
        learning = Learning(optax.sgd(0.1, momentum=0.9))
        task = Detection(Linear(dtype="float64", rngs=nnx.Rngs(1)), learning, denoising=GROUPS)
        state, _ = trained_in_replicas(task, batches("float64"), key=jax.random.key(3))
    assert_equal(jax.device_get(state.params), trained("pmap", 8, CLASSES, GROUPS)[0])


def test_what_it_refuses():
    model = Linear(rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="denoising must be at least 0, got -1"):
        detect(model, denoising=-1)
    with pytest.raises(InputError, match=r"label_noise must be in \[0, 1\], got 1.5"):
        detect(model, label_noise=1.5)
    task = detect(model)
    labels, boxes = naive.scene(np.random.default_rng(0), [2], QUERIES + 1, CLASSES)
    batch = {"image": np.zeros((1, 6, 5, 3), np.float32), "labels": labels, "boxes": boxes}
    with pytest.raises(InputError, match=r"queries must be at least as many as .* got 9 for up to 10"):
        task.update(task.init(jax.random.key(0)), batch)
