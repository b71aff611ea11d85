"""Which positions of a map inside a network speak for a class, by the gradient of the class's score.

    α_k = mean_ij(∂y_c / ∂A_ijk)
    L = relu(Σ_k α_k A_k)

with A the output of one Module of the network and y_c the score of the class c. In a copy of the network that Module is
given a subclass of its own class, whose `__call__` adds a zero to what it returns; the gradient by the zero is the one
by A, also through what JAX traces: nnx.remat, jax.checkpoint, nnx.jit.

Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra, "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization" (2017), arXiv:1610.02391.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from attn_flax.checks import UnknownNameError, check
from attn_flax.explain.maps import Recorder


def attribution(
    model: nnx.Module, *inputs, at: str, target: ArrayLike | None = None, **kwinputs
) -> Float[Array, "..."]:
    """L, the heat of each position: how much what the Module found there speaks for the class, at least zero.

    The network runs in evaluation mode, as a copy: it stays as it is. `draw_attention_maps(images, {at: heat})` draws
    the heat of a map.

    Args:
        model: any network whose call gives scores (*b, classes), the logits.
        *inputs: what to call the network with.
        at: the path of a Module in it, "conv2" or "blocks.0.attention", that is called once and gives (*b, *s, c).
        target: the class, one for all inputs or one for each, (*b); by default that of the highest score.
        **kwinputs: what else to call the network with.

    Returns:
        (*b, *s): (*b, h, w) for a Module that gives maps, (*b, n) for one that gives tokens.

    Raises:
        UnknownNameError: there is no Module at that path; the close ones are listed.
        InputError: the network or the Module gives another layout, or the Module is not called once; a target that is
            no class.

    >>> from attn_flax.models import create_model
    >>> model = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    >>> attribution(model, jnp.ones((2, 7, 5, 3)), at="attention", target=3).shape
    (2, 7, 5)
    """
    network, module = _watched(model, at)
    a, scores = _run(network, module, at, inputs, kwinputs)
    target = _classes(target, scores)
    module._zero = _Zero(jnp.zeros(a.shape, jnp.float32))
    graphdef, zero, rest = nnx.split(network, _Zero, ...)
    rest = nnx.to_pure_dict(rest)

    def score(zero):
        scores = nnx.merge(graphdef, zero, rest)(*inputs, **kwinputs)
        return jnp.take_along_axis(scores, target[..., None], -1).sum()

    (gradient,) = jax.tree.leaves(jax.grad(score)(nnx.to_pure_dict(zero)))
    positions = tuple(range(scores.ndim - 1, a.ndim - 1))
    return jax.nn.relu((gradient.mean(positions, keepdims=True) * a).sum(-1))


class _Zero(nnx.Variable):
    """What is added to the output of the watched Module."""


def _watched(model, at):
    """A copy of the network in evaluation mode, and its Module of that path, whose output is watched."""
    network = nnx.clone(model)
    network.eval()
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(network)}
    if at not in modules:
        raise UnknownNameError("module", at, modules)
    module = modules[at]
    module.__class__ = _watching(type(module))
    return network, module


def _run(network, module, at, inputs, kwinputs):
    """What the Module gives and what the network gives."""
    recorder = Recorder()
    module._record, module._zero = functools.partial(recorder.record, at), _Zero(jnp.zeros(()))
    scores = network(*inputs, **kwinputs)
    check(
        isinstance(scores, jax.Array) and scores.ndim >= 1,
        f"the network must give scores (*b, classes), got {jax.tree.map(jnp.shape, scores)}.",
    )
    outputs = list(recorder.maps().values())
    check(len(outputs) == 1, f"the module {at!r} must be called once, got {len(outputs)} calls.")
    (a,), batch = outputs, scores.shape[:-1]
    check(
        isinstance(a, jax.Array) and a.ndim >= len(batch) + 2 and a.shape[: len(batch)] == batch,
        f"the module {at!r} must give a map or tokens for each of the scores {scores.shape}, "
        f"got {jax.tree.map(jnp.shape, a)}.",
    )
    module._record = lambda y: None
    return a.astype(jnp.float32), scores


def _classes(target, scores):
    *batch, classes = scores.shape
    if target is None:
        return scores.argmax(-1)
    target = jnp.asarray(target)
    check(
        jnp.issubdtype(target.dtype, jnp.integer)
        and target.shape in ((), tuple(batch))
        and bool(((target >= 0) & (target < classes)).all()),
        f"target must be a class from 0 to {classes - 1} for all or for each of {tuple(batch)} inputs, got {target}.",
    )
    return jnp.broadcast_to(target, batch)


@functools.cache
def _watching(plain: type[nnx.Module]) -> type[nnx.Module]:
    """The subclass that is watched; one for each class, since JAX never forgets a class of Modules."""

    class Watching(plain, pytree=plain._pytree__is_pytree):
        def __call__(self, *inputs, **kwinputs):
            y = super().__call__(*inputs, **kwinputs)
            self._record(y)
            return jax.tree.map(lambda part: part + self._zero[...].astype(part.dtype), y)

    Watching.__name__, Watching.__qualname__ = plain.__name__, plain.__qualname__
    return Watching
