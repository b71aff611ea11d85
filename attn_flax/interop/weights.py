"""The numbers of timm's modules and networks into ours, and back."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from attn_flax.checks import check, listed
from attn_flax.interop.layouts import NAMES, Layout, owned
from attn_flax.interop.naming import naming
from attn_flax.interop.positions import resampled

SHOWN = 20
COMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask|attention_bias_idxs)$"
)
"""A batch norm's count of steps, which nothing here needs, and what older files hold though it follows from sizes."""


class Place(NamedTuple):
    """Where timm has an array of ours.

    Attributes:
        path: ours.
        owner: the Module whose parameter or statistic it is.
        variable: that.
        name: timm's, in which `naming` says what is cut and joined.
        layout: timm's.
    """

    path: str
    owner: nnx.Module
    variable: nnx.Variable
    name: str
    layout: Layout

    @property
    def parts(self) -> list[tuple[str, int]]:
        """Of our array, equal along timm's first axis: in which of timm's arrays each is, and as which part of it."""
        if joined := re.search(r"\[(\d+)\]", self.name):
            return [(self.name.replace(joined[0], ""), int(joined[1]))]
        if cut := re.search(r"\{(.*)\}", self.name):
            names = cut[1].split(",")
            return [(self.name.replace(cut[0], name), names[:i].count(name)) for i, name in enumerate(names)]
        return [(self.name, 0)]


def load_timm(module: nnx.Module, state_dict: Mapping[str, Any], *, resample: bool = False) -> None:
    """Sets the parameters and running statistics of a Module to those of timm's of the same kind.

    Args:
        module: a network that timm has too, or a mechanism, configured like timm's as `timm_attention` makes it. The
            arrays may be abstract, as `nnx.eval_shape` leaves them.
        state_dict: timm's arrays by name, in PyTorch's layouts: NumPy arrays, or tensors that NumPy can read. Step
            counters, and tables that follow from sizes, are passed over. Axes of one do not matter, nor whether
            neighbouring axes are one.
        resample: whether embeddings of positions, and tables of relative ones, that are for other sizes are resampled.

    Raises:
        InputError: a Module that timm has no counterpart of; entries missing, unexpected or of another shape, all of
            which are listed. The Module is as it was then.
    """
    theirs = {name: np.asarray(array) for name, array in state_dict.items() if not COMPUTED.search(name)}
    places = timm_places(module)
    parts = _parts(places)
    expected = {name: _joined_shape(shapes) for name, shapes in parts.items()}
    if resample:
        for place in places:
            if place.name in theirs:
                theirs[place.name] = resampled(place.owner, place.path, theirs[place.name], place.variable.shape)
    faults = [f"missing {name}" for name in expected.keys() - theirs.keys()]
    faults += [f"unexpected {name}" for name in theirs.keys() - expected.keys()]
    faults += [
        f"{name} must be {expected[name]}, got {theirs[name].shape}"
        for name in expected.keys() & theirs.keys()
        if not _is_one_layout(theirs[name].shape, expected[name])
    ]
    check(not faults, f"the weights do not fit {type(module).__name__}: {listed(sorted(faults), SHOWN)}.")
    cut = {name: _cut(theirs[name].reshape(expected[name]), shapes) for name, shapes in parts.items()}
    for place in places:
        array = _join([cut[name][part] for name, part in place.parts])
        ours = place.layout.from_torch(array, place.variable.shape)
        place.variable.set_value(jnp.asarray(ours, place.variable.dtype))


def to_timm(module: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters and running statistics of a Module by timm's names, in PyTorch's layouts; no step counters.

    Raises:
        InputError: a Module that timm has no counterpart of.
    """
    parts = defaultdict(dict)
    for place in timm_places(module):
        array = place.layout.to_torch(np.asarray(place.variable.get_value()))
        for (name, part), piece in zip(place.parts, _split(array, len(place.parts)), strict=True):
            parts[name][part] = piece
    return {name: _join([pieces[part] for part in sorted(pieces)]) for name, pieces in parts.items()}


def timm_places(module: nnx.Module) -> list[Place]:
    """Where timm has the parameters and statistics of a Module; several places for what is shared.

    Raises:
        InputError: a Module that timm has no counterpart of.
    """
    check(naming(module) is not None, f"timm has no counterpart of {type(module).__name__} that is known here.")
    return [place._replace(name=_leaf_renamed(place.name)) for place in _places(module)]


def _places(module) -> Iterator[Place]:
    """Those of the Module's own arrays and of what its parts hold, named as the Module's class says."""
    names = naming(module)
    for place in _unnamed(module):
        if names is not None:
            name = names.name(place.name)
            layout = names.layout(place.path, name.rpartition(".")[0], place.layout)
            place = place._replace(name=name, layout=layout)
        yield place


def _unnamed(module):
    for key, variable, layout in owned(module):
        yield Place(key, module, variable, key, layout)
    for key, child in nnx.iter_children(module):
        if isinstance(child, nnx.Module):
            for place in _places(child):
                yield place._replace(path=f"{key}.{place.path}", name=f"{key}.{place.name}")


def _leaf_renamed(name):
    layer, dot, leaf = name.rpartition(".")
    return layer + dot + NAMES.get(leaf, leaf)


def _parts(places: Iterable[Place]) -> dict[str, dict[int, tuple[int, ...]]]:
    """Of each of timm's arrays the shapes of its parts."""
    parts = defaultdict(dict)
    for place in places:
        shape = place.layout.shape(place.variable.shape)
        for name, part in place.parts:
            parts[name][part] = shape if len(place.parts) == 1 else (shape[0] // len(place.parts), *shape[1:])
    return parts


def _joined_shape(parts):
    shapes = list(parts.values())
    return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _is_one_layout(a, b):
    """Whether arrays of these shapes differ at most in which neighbouring axes are one, and in axes of one."""
    sizes, others = ({math.prod(shape[:i]) for i in range(len(shape) + 1)} for shape in (a, b))
    return math.prod(a) == math.prod(b) and (sizes <= others or others <= sizes)


def _cut(array, parts):
    """One of timm's arrays, by part."""
    ends = np.cumsum([parts[part][0] for part in sorted(parts)[:-1]], dtype=int)
    return dict(zip(sorted(parts), np.split(array, ends) if len(parts) > 1 else [array], strict=True))


def _split(array, count):
    return [array] if count == 1 else np.split(array, count)


def _join(arrays):
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
