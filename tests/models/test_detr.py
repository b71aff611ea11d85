"""The detection transformer against naive layers: what each addition to the paper computes, and what sees what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attn_flax.checks import InputError
from attn_flax.models import Detr
from tests.models import networks

CLASSES, WIDTH, HEADS, QUERIES, LAYERS = 3, 8, 2, 4, 2
SIZES = ((4, 6), (2, 3))
CHANNELS = (5, 3)
ALL = {"two_stage": True, "refine": True, "modulate": True, "focal": True}
IMAGE = networks.random(8, 12, 2)


class Maps(nnx.Module):
    """A backbone without parameters: shares of the image, repeated in its channels."""

    feature_channels = CHANNELS

    def __init__(self, num_classes, *, in_channels, attention, dtype, param_dtype, rngs):
        self.in_channels = in_channels

    def features(self, x):
        return [x[..., ::step, ::step, :1] * jnp.arange(1, c + 1) for step, c in zip((2, 4), CHANNELS, strict=True)]


def detr(**arguments):
    sizes = {"width": WIDTH, "num_heads": HEADS, "num_queries": QUERIES, "encoder_layers": 1, "decoder_layers": LAYERS}
    return networks.build(lambda **types: Detr(CLASSES, backbone=Maps, in_channels=2, **sizes | arguments, **types))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def linear(x, p, name):
    return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]


def norm(x, p, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p[f"{name}.scale"] + p[f"{name}.bias"]


def perceptron(x, p, name):
    return linear(np.maximum(linear(x, p, f"{name}.reduce"), 0), p, f"{name}.expand")


def waves(x, d):
    """The sines, then the cosines, of 2π times each coordinate, in d/(2a) wavelengths."""
    number = d // (2 * x.shape[-1])
    frequencies = 10000.0 ** (-np.arange(number) / number)
    rows = []
    for point in x:
        phases = [2 * np.pi * coordinate * frequencies for coordinate in point]
        rows.append(np.concatenate([np.concatenate([np.sin(f), np.cos(f)]) for f in phases]))
    return np.array(rows)


def attention(x, z, x_position, z_position, p, name, bias=None, sees=None):
    q, k, v = (
        linear(t, p, f"{name}.{role}") for t, role in ((x + x_position, "query"), (z + z_position, "key"), (z, "value"))
    )
    d, out = WIDTH // HEADS, []
    for head in range(HEADS):
        part = slice(head * d, head * d + d)
        scores = q[:, part] @ k[:, part].T / np.sqrt(d)
        scores = scores if bias is None else scores + bias[head]
        weights = np.exp(scores) * (1 if sees is None else sees)
        out.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return linear(np.concatenate(out, 1), p, f"{name}.project")


def window(x, boxes, centres, p, name):
    """The logarithm of each head's Gaussian at each token, for each query."""
    learned = linear(x, p, f"{name}.window").reshape(len(x), HEADS, 4)
    bias = np.zeros((HEADS, len(x), len(centres)))
    for query, (cx, cy, w, h) in enumerate(boxes):
        for head in range(HEADS):
            ox, oy, sx, sy = learned[query, head]
            for token, (zx, zy) in enumerate(centres):
                u, v = (zx - cx) / w - ox, (zy - cy) / h - oy
                bias[head, query, token] = -0.5 * ((u / np.exp(sx) * 2) ** 2 + (v / np.exp(sy) * 2) ** 2)
    return bias


def heads(x, boxes, p, name):
    x = norm(x, p, f"{name}.norm")
    offset = perceptron(x, p, f"{name}.locate")
    if boxes is not None:
        kept = np.clip(boxes, 1e-3, 1 - 1e-3)
        offset = offset + np.log(kept / (1 - kept))
    return linear(x, p, f"{name}.classify"), sigmoid(offset)


def encode(image, p, levels):
    """The tokens, their positions, and centre and size of their cells."""
    steps, channels = (2, 4)[-levels:], CHANNELS[-levels:]
    tokens, positions, cells = [], [], []
    for level, (step, c) in enumerate(zip(steps, channels, strict=True)):
        x = image[::step, ::step, :1] * np.arange(1, c + 1)
        h, w, _ = x.shape
        tokens.append(norm(linear(x.reshape(-1, c), p, f"reduce.{level}"), p, f"reduce_norms.{level}"))
        where = np.array([((j + 0.5) / w, (i + 0.5) / h, 1 / w, 1 / h) for i in range(h) for j in range(w)])
        cells.append(where)
        of_level = p["level_position.embedding"][level] if levels > 1 else 0
        positions.append(waves(where[:, :2], WIDTH) + of_level)
    x, position, cells = (np.concatenate(parts) for parts in (tokens, positions, cells))
    normed = norm(x, p, "encoder.0.attention_norm")
    x = x + attention(normed, normed, position, position, p, "encoder.0.attention")
    x = x + perceptron(norm(x, p, "encoder.0.perceptron_norm"), p, "encoder.0.perceptron")
    return norm(x, p, "memory_norm"), position, cells


def propose(memory, cells, p, focal):
    logits, boxes = heads(memory, np.concatenate([cells[:, :2], 3 * cells[:, 2:]], 1), p, "queries.heads")
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    objectness = logits.max(1) if focal else -np.log(probability[:, -1])
    best = np.argsort(-objectness)[:QUERIES]
    return linear(memory[best], p, "queries.content"), boxes[best], (logits, boxes)


def oracle(image, p, *, levels=1, two_stage=False, refine=False, modulate=False, focal=False, noised=None):
    """What each layer of the decoder says, and what the tokens propose."""
    memory, memory_position, cells = encode(image, p, levels)
    boxes, proposals = None, None
    if two_stage:
        content, boxes, proposals = propose(memory, cells, p, focal)
    elif refine or modulate:
        content, boxes = p["queries.content"], sigmoid(p["queries.boxes"])
    else:
        content, position = np.zeros((QUERIES, WIDTH)), p["queries.position"]
    sees = np.ones((QUERIES, QUERIES))
    if noised:
        labels, noised_boxes, noised_sees = noised
        content = np.concatenate([content, p["noised_content.embedding"][labels]])
        boxes = np.concatenate([boxes, noised_boxes])
        d = len(labels)
        sees = np.block([[sees, np.zeros((QUERIES, d))], [np.ones((d, QUERIES)), noised_sees]])
    found = []
    for layer in range(LAYERS):
        name = f"decoder.{layer}"
        if boxes is not None:
            position = perceptron(waves(boxes, 2 * WIDTH), p, "position")
        x = norm(content, p, f"{name}.self_norm")
        content = content + attention(x, x, position, position, p, f"{name}.self_attention", sees=sees)
        x = norm(content, p, f"{name}.cross_norm")
        cross, bias = f"{name}.cross_attention", None
        if modulate:
            bias = window(x, boxes, cells[:, :2], p, cross)
        content = content + attention(x, memory, position, memory_position, p, cross, bias)
        content = content + perceptron(norm(content, p, f"{name}.perceptron_norm"), p, f"{name}.perceptron")
        found.append(heads(content, boxes, p, "heads"))
        boxes = found[-1][1] if refine else boxes
    return found, proposals


def noised_queries(d=3, seed=5):
    rng = np.random.default_rng(seed)
    return rng.integers(0, CLASSES, d), rng.uniform(0.2, 0.8, (d, 4)), np.eye(d, dtype=bool) | (np.arange(d) == 1)


@pytest.mark.full
@pytest.mark.parametrize(
    "additions",
    [{}, {"levels": 2}, {"two_stage": True}, {"refine": True}, {"modulate": True}, ALL],
    ids=lambda additions: " ".join(additions) or "plain",
)
def test_what_it_finds_is_the_naive_layers(additions):
    net, p = detr(**additions)
    found, proposals = oracle(IMAGE, p, **additions)
    ours = networks.run(net, IMAGE)
    for index, (logits, boxes) in enumerate(found):
        np.testing.assert_allclose(ours["logits"][index], logits, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(ours["boxes"][index], boxes, rtol=1e-8, atol=1e-10)
    assert ("proposals" in ours) == (proposals is not None)
    if proposals is not None:
        for name, expected in zip(("logits", "boxes"), proposals, strict=True):
            np.testing.assert_allclose(ours["proposals"][name], expected, rtol=1e-8, atol=1e-10)


def test_denoising_queries_are_seen_by_none_but_those_named():
    net, p = detr(**ALL)
    labels, boxes, sees = noised_queries()
    ours = networks.run(net, IMAGE, (labels, boxes, sees))
    found, _ = oracle(IMAGE, p, **ALL, noised=(labels, boxes, sees))
    for index, (logits, of_layer) in enumerate(found):
        both = (jnp.concatenate([ours[name][index], ours["denoised"][name][index]]) for name in ("logits", "boxes"))
        for got, expected in zip(both, (logits, of_layer), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)
    without = networks.run(net, IMAGE)
    np.testing.assert_allclose(ours["logits"], without["logits"], rtol=1e-10)
    moved = networks.run(net, IMAGE, (labels, np.where(np.arange(3)[:, None] == 0, 0.5, boxes), sees))["denoised"]
    np.testing.assert_allclose(moved["logits"][:, 1:], ours["denoised"]["logits"][:, 1:], rtol=1e-10)
    assert np.abs(moved["logits"][:, 0] - ours["denoised"]["logits"][:, 0]).max() > 1e-4


@pytest.mark.full
def test_reference_boxes_are_constants_to_the_gradient():
    """What a later layer says does not move the boxes of an earlier one, nor the proposals'."""
    net, _ = detr(**ALL)
    with jax.enable_x64():
        graph, parameters, rest = nnx.split(net, nnx.Param, ...)
        image = jnp.asarray(IMAGE)

        def last_box(parameters):
            return nnx.merge(graph, parameters, rest)(image)["boxes"][-1].sum()

        gradients = nnx.to_pure_dict(jax.jit(jax.grad(last_box))(parameters))
    np.testing.assert_array_equal(gradients["queries"]["heads"]["locate"]["expand"]["kernel"], 0)
    assert np.abs(gradients["heads"]["locate"]["expand"]["kernel"]).max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 6}, "width must be a multiple of 4, got 6"),
        ({"levels": 3}, "levels must be at most the backbone's 2 maps, got 3"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"encoder_layers": -1}, "encoder_layers must be at least 0, got -1"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(InputError, match=message):
        Detr(CLASSES, backbone=Maps, **{"width": WIDTH, "num_heads": HEADS} | arguments, rngs=nnx.Rngs(0))


def test_what_it_refuses_of_images():
    def call(noised=None, **arguments):
        net = Detr(CLASSES, backbone=Maps, width=WIDTH, num_heads=HEADS, **arguments, rngs=nnx.Rngs(0))
        return net(jnp.ones((8, 12, 3)), noised)

    with pytest.raises(InputError, match="num_queries must be at most the cells of the maps, got 7"):
        nnx.eval_shape(lambda: call(two_stage=True, num_queries=7))
    labels, boxes, sees = noised_queries()
    noised = jnp.asarray(labels), jnp.asarray(boxes, jnp.float32), jnp.asarray(sees)
    with pytest.raises(InputError, match="denoising queries need reference boxes"):
        nnx.eval_shape(lambda: call(noised))
