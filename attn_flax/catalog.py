"""The catalogue: every mechanism's name, and what it stands for."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from flax import nnx

from attn_flax import nn
from attn_flax.checks import InputError, UnknownNameError, check_arguments


@dataclasses.dataclass(frozen=True)
class Row:
    """A mechanism of the catalogue.

    Attributes:
        module: the class, constructed as `module(channels, *, rngs, **arguments)`.
        family: the room of mechanisms/ that it lives in.
        paper: title, year and arXiv id.
        kind: the layout it takes: "map" for (*b h w c) in and out.
        arguments: what the name fixes, so that a variant is a row and not a class.
    """

    module: Callable[..., nnx.Module]
    family: str
    paper: str
    kind: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CATALOG: Mapping[str, Row] = MappingProxyType(
    {
        "article": Row(nn.Article, "article", "the article, sections 3.1 to 3.3", "map"),
        "article_gate": Row(nn.ArticleGate, "article", "the article, section 4", "map"),
    }
)


def list_attentions() -> list[str]:
    """The names of the catalogue.

    >>> list_attentions()
    ['article', 'article_gate']
    """
    return sorted(CATALOG)


def create_attention(name: str, channels: int, *, rngs: nnx.Rngs, **hyperparameters) -> nnx.Module:
    """The mechanism of that name for features of `channels` channels.

    Args:
        name: one of `list_attentions()`.
        channels: the size of the last axis of its input.
        rngs: the source of its initial parameters.
        **hyperparameters: the arguments of the mechanism's class, which also documents and checks them.

    Raises:
        UnknownNameError: the name or a hyperparameter does not exist; the close ones are listed.
        InputError: a hyperparameter is out of range, or fixed by the name.

    >>> gate = create_attention("article_gate", 64, reduction=4, rngs=nnx.Rngs(0))
    >>> gate.reduce.out_features
    16
    """
    if name not in CATALOG:
        raise UnknownNameError("attention", name, CATALOG)
    row = CATALOG[name]
    check_arguments(name, row.module, hyperparameters)
    for argument in row.arguments.keys() & hyperparameters.keys():
        raise InputError(f"{argument} of attention {name!r} is fixed to {row.arguments[argument]!r}.")
    return row.module(channels, **row.arguments, **hyperparameters, rngs=rngs)
