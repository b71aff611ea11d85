"""attn_flax: visual attention mechanisms in JAX and Flax, each proven equal to its paper.

The axis alphabet, the same in every signature; channels come last:

    *b    any batch axes
    h w   the height and width of a map;  t  time
    n m   query and key tokens (for a map: its h·w positions)
    k g   heads, groups
    c d   features;  e  value features

The names below are loaded when first used, so `import attn_flax` costs next to nothing.

>>> import attn_flax
>>> from flax import nnx
>>> gate = attn_flax.create_attention("article_gate", 64, rngs=nnx.Rngs(0))
>>> type(gate).__name__
'ArticleGate'
"""

import importlib

from attn_flax.version import __version__

_ROOMS = ("data", "explain", "functional", "interop", "models", "nn", "ops", "runs", "tasks", "training")
_HOMES = {
    "InputError": "checks",
    "create_attention": "catalog",
    "describe_attention": "catalog",
    "list_attentions": "catalog",
    "create_model": "models",
    "list_models": "models",
    "load_run": "runs",
}
__all__ = ["__version__", *_ROOMS, *_HOMES]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
