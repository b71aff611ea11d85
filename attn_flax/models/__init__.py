"""Networks that take an attention by argument, and the table of their names."""

from functools import partial

import jax
from flax import nnx

from attn_flax.catalog import CATALOG, create_attention
from attn_flax.checks import UnknownNameError, check_arguments
from attn_flax.models import attention_net
from attn_flax.models.attention_net import AttentionFactory, AttentionNet

__all__ = ["AttentionFactory", "AttentionNet", "create_model", "list_models"]

MODELS = {**attention_net.MODELS}
ACTIVATIONS = {
    "elu": jax.nn.elu,
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jax.nn.tanh,
}


def list_models() -> list[str]:
    """The names that `create_model` knows.

    >>> list_models()
    ['attention_net']
    """
    return sorted(MODELS)


def create_model(name: str, *, num_classes: int = 1000, rngs: nnx.Rngs, **arguments) -> nnx.Module:
    """The network of that name.

    Args:
        name: one of `list_models()`.
        num_classes: the number of logits.
        rngs: the source of the initial parameters.
        **arguments: those of the network's class, which documents them. `attention` may also be a name of the
            catalogue or "none", and `activation` a name: elu, gelu, relu, silu, tanh or "none".

    Raises:
        UnknownNameError: the network, its attention, its activation or an argument does not exist; the close ones are
            listed.

    >>> model = create_model("attention_net", num_classes=10, activation="relu", rngs=nnx.Rngs(0))
    >>> sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    4276690
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    model, fixed = MODELS[name]
    check_arguments(name, model, arguments)
    if "attention" in arguments:
        attentions = {attention: partial(create_attention, attention) for attention in CATALOG}
        arguments["attention"] = _named("attention", arguments["attention"], attentions)
    if "activation" in arguments:
        arguments["activation"] = _named("activation", arguments["activation"], ACTIVATIONS)
    return model(num_classes, **fixed, **arguments, rngs=rngs)


def _named(kind, value, table):
    """What a name of the table stands for, None for "none"; what is no name stands for itself."""
    if not isinstance(value, str):
        return value
    table = {"none": None, **table}
    if value not in table:
        raise UnknownNameError(kind, value, table)
    return table[value]
