"""The sides of a benchmark that run in JAX: this library, jax.nn, flax.nnx and lax.

    python -m experiments.benchmarking.jax_side '{"function": "attention", "side": "jax.nn", …}'

The specification has what `Work` has, for one side and one pass.
"""

import contextlib
import functools
import itertools
import json
import platform
import sys
import time

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax import data, interop, ops, runs, training
from attn_flax.catalog import create_attention
from attn_flax.checks import InputError
from attn_flax.models import create_model
from attn_flax.tasks import Classification
from attn_flax.version import __version__
from experiments.benchmarking.side import answer, serve, timed
from experiments.benchmarking.works import BACKWARD


def main(spec: dict) -> None:
    """Builds what the specification says, and serves it."""
    if spec["function"] == "training":
        runs.keep_freed_memory()
    versions = {"attn_flax": __version__, "jax": jax.__version__, "flax": flax.__version__}
    versions |= {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    if spec["function"] == "epoch":
        with contextlib.closing(_epochs(**spec["arguments"])) as epochs:
            serve(lambda: next(epochs), versions)
        return
    if spec["function"] == "training":
        serve(_training(**spec["arguments"]), versions)
        return
    try:
        built = BUILDERS[spec["function"]](spec["side"], **spec["arguments"])
        run = _compiled(*built, spec["pass"] == BACKWARD)
    except InputError as error:
        answer({"error": str(error)})
        return
    serve(timed(run), versions)


def _compiled(function, differentiable, constant, backward):
    """A call without arguments: the output, for both passes with the gradients to a given cotangent."""

    def forward(arrays, constant):
        return function(*arrays, *constant)

    def both(arrays, constant, cotangent):
        output, pull_back = jax.vjp(lambda arrays: forward(arrays, constant), arrays)
        return output, pull_back(cotangent)

    arguments = differentiable, constant
    if backward:
        output = jax.eval_shape(forward, *arguments)
        arguments = *arguments, _random(np.random.default_rng(1), output.shape, output.dtype)
    compiled = jax.jit(both if backward else forward).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def _attention(side, *, batch, tokens, heads, features, bias, mask, dtype):
    rng = np.random.default_rng(0)
    dtype = "float32" if side.endswith("float32") else dtype
    q, k, v = (_random(rng, (batch, tokens, heads, features), dtype) for _ in range(3))
    table = _random(rng, (1, heads, tokens, tokens), dtype) if bias else None
    visible = jnp.asarray(rng.random((batch, 1, tokens, tokens)) < 0.8) | jnp.eye(tokens, dtype=bool) if mask else None
    attend = {
        "jax.nn": jax.nn.dot_product_attention,
        "nnx": functools.partial(nnx.dot_product_attention, deterministic=True),
        "attn_flax xla": functools.partial(ops.dot_product_attention, implementation="xla"),
    }.get(side, ops.dot_product_attention)
    return lambda q, k, v, bias, mask: attend(q, k, v, bias=bias, mask=mask), (q, k, v), (table, visible)


def _multi_head(side, *, shape, heads):
    """Flax's module with its own attention function, or with ours."""
    own = {"attention_fn": lambda q, k, v, **_: ops.dot_product_attention(q, k, v)} if side == "attn_flax" else {}
    return _module(nnx.MultiHeadAttention(heads, shape[-1], decode=False, **own, rngs=nnx.Rngs(0)), shape)


def _depthwise(side, *, shape, window, dilation):
    rng = np.random.default_rng(0)
    x, kernel = _random(rng, shape, "float32"), _random(rng, (*window, shape[-1]), "float32")

    def lax(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[..., None, :],
            (1, 1),
            "SAME",
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=shape[-1],
        )

    ours = functools.partial(ops.depthwise_conv, dilation=tuple(dilation))
    return lax if side == "lax" else ours, (x, kernel), ()


def _neighborhood(side, *, shape, heads, features, window):
    rng = np.random.default_rng(0)
    arrays = tuple(_random(rng, (*shape, heads, features), "float32") for _ in range(3))
    attend = _gathered if side == "gather" else ops.neighborhood_attention
    return functools.partial(attend, window=tuple(window)), arrays, ()


def _gathered(q, k, v, window):
    """The usual form: a copy of its keys for each query."""
    size = q.shape[1:3]
    taken = [
        np.clip(np.arange(s) - w // 2, 0, s - w)[:, None] + np.arange(w) for s, w in zip(size, window, strict=True)
    ]
    rows, columns = taken[0][:, None, :, None], taken[1][None, :, None, :]
    keys, values = k[:, rows, columns], v[:, rows, columns]
    scores = jnp.einsum("bhwkd,bhwxykd->bhwkxy", q, keys) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=(-2, -1))
    return jnp.einsum("bhwkxy,bhwxykd->bhwkd", weights, values)


def _mechanism(side, *, name, shape, like_timm):
    rngs = nnx.Rngs(0)
    if like_timm is None:
        return _module(create_attention(name, shape[-1], rngs=rngs), shape)
    return _module(interop.timm_attention(name, shape[-1], **like_timm, rngs=rngs), shape)


def _model(side, *, name, shape):
    return _module(create_model(name, rngs=nnx.Rngs(0)), shape)


def _module(module, shape):
    """In evaluation mode; differentiated by its input and its parameters."""
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    x = _random(np.random.default_rng(0), shape, "float32")
    return lambda x, params, rest: nnx.merge(graph, params, rest)(x), (x, params), (rest,)


def _training(*, name, shape, dtype, steps):
    """The seconds of a step of classification, as the experiments train: forward, backward and Adam."""
    network = create_model(name, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    task = Classification(network, training.Learning(training.create_optimizer("adam", 1e-3)), num_classes=1000)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    state = runner.place(task.init(jax.random.key(0)))
    rng = np.random.default_rng(0)
    batch = {"image": rng.standard_normal(shape, np.float32), "label": rng.integers(1000, size=shape[0])}
    batch = runner.put(batch)

    def run():
        nonlocal state
        start = time.perf_counter()
        for _ in range(steps):
            state, _ = runner.update(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / steps

    return run


def _epochs(*, file, batch_size):
    """The seconds of each epoch of the article's network on the digits, through the whole pipeline."""
    train = data.load_dataset("digits").train
    mean, std = data.channel_statistics(train, 3)
    network = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    task = Classification(network, training.Learning(training.create_optimizer("adam", 1e-3)), num_classes=10)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    state = runner.place(task.init(jax.random.key(0)))
    batches = data.train_batches(
        train, batch_size=batch_size, seed=0, shape=(8, 8, 3), mean=mean, std=std, num_classes=10
    )
    images = len(train) // batch_size * batch_size
    with contextlib.closing(batches):
        for epoch in itertools.count(1):
            start = time.perf_counter()
            state = training.fit(runner, state, batches, training.Plan(images, batch_size, epoch))
            jax.block_until_ready(state)
            yield time.perf_counter() - start


def _random(rng, shape, dtype):
    return jnp.asarray(rng.standard_normal(shape), dtype)


BUILDERS = {
    "attention": _attention,
    "multi_head": _multi_head,
    "depthwise": _depthwise,
    "neighborhood": _neighborhood,
    "mechanism": _mechanism,
    "model": _model,
}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
