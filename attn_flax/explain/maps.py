"""The attention maps inside a network, without its author's doing anything.

A Module attends if it has `attention_map`, which takes the inputs of its `__call__`. In a copy of the network every
such Module is given a subclass of its own class, whose `__call__` first computes the map. The map leaves by a debug
callback, so it also comes out of calls that JAX traces: nnx.remat, jax.checkpoint, nnx.jit, scans over layers.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree


def attention_maps(model: nnx.Module, *inputs, **kwinputs) -> dict[str, PyTree[Array]]:
    """What every attending Module of the network computes as its map when the network is called.

    The network runs in evaluation mode, as a copy: its mode, random state, statistics and attributes stay as they
    are. A part under jit compiles anew, since its compiled form has no maps in it.

    Args:
        model: any network; those of its Modules attend that have `attention_map`.
        *inputs: what to call the network with.
        **kwinputs: likewise.

    Returns:
        The maps in the order of the calls, by the Module's path, "attention" or "blocks.0.attention", "" for the
        network itself. Further calls of the same Module, also by a scan or a vmap, follow as "attention#1",
        "attention#2". A Module that is not called, or not by `__call__`, is not there; without any the dict is empty.

    >>> from attn_flax.models import create_model
    >>> model = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    >>> maps = attention_maps(model, jnp.ones((2, 7, 5, 3)))
    >>> {path: weights.shape for path, weights in maps.items()}
    {'attention': (2, 7, 5, 64)}
    """
    network, recorder = nnx.clone(model), Recorder()
    network.eval()
    for path, module in list(nnx.iter_modules(network)):
        if hasattr(type(module), "attention_map"):
            module.__class__ = _recording(type(module))
            module._record = functools.partial(recorder.record, ".".join(map(str, path)))
    network(*inputs, **kwinputs)
    return recorder.maps()


class Recorder:
    """The maps of one run of a network.

    Calls are numbered as Python meets them, because callbacks may arrive in another order; those of one traced call,
    which arrive several times with one number, keep their order of arrival.
    """

    def __init__(self):
        self._numbers = itertools.count()
        self._arrived: list[tuple[int, str, PyTree]] = []

    def record(self, path: str, weights: PyTree) -> None:
        """Keeps a map, which may be traced; a copy of it, since the callback only borrows its memory."""
        number = next(self._numbers)
        jax.debug.callback(
            lambda weights: self._arrived.append((number, path, jax.tree.map(np.array, weights))), weights
        )

    def maps(self) -> dict[str, PyTree[Array]]:
        """The maps by path and call, once all have arrived."""
        jax.effects_barrier()
        maps, calls = {}, {}
        for _, path, weights in sorted(self._arrived, key=lambda arrived: arrived[0]):
            call = calls[path] = calls.get(path, -1) + 1
            maps[f"{path}#{call}" if call else path] = jax.tree.map(jnp.asarray, weights)
        return maps


@functools.cache
def _recording(plain: type[nnx.Module]) -> type[nnx.Module]:
    """The subclass that records; one for each class, since JAX never forgets a class of Modules."""

    class Recording(plain, pytree=plain._pytree__is_pytree):
        def __call__(self, *inputs, **kwinputs):
            self._record(_plain_copy(self).attention_map(*inputs, **kwinputs))
            return super().__call__(*inputs, **kwinputs)

    Recording._plain = plain
    Recording.__name__, Recording.__qualname__ = plain.__name__, plain.__qualname__
    return Recording


def _plain_copy(module):
    """A copy that records nothing: its map may call attending Modules, and draw from its random state."""
    copy = nnx.clone(module)
    for _, part in nnx.iter_modules(copy):
        part.__class__ = getattr(type(part), "_plain", type(part))
    return copy
