"""Parameters that training leaves as they are.

A frozen parameter is a variable of another type than `nnx.Param`, and so part of the state that a network keeps beside
its parameters: it has no gradient, no moments and no decay, and takes no part in the norm that gradients are clipped
to. A Module all of whose parameters are frozen stays in evaluation mode, so that its batch statistics do not move.
"""

from collections.abc import Iterable

from flax import nnx

from attn_flax.checks import UnknownNameError, check


class Frozen(nnx.Variable):
    """A parameter that stays as it is."""


def freeze(model: nnx.Module, parts: Iterable[str]) -> None:
    """Freezes all parameters of some parts of a network.

    Args:
        model: the network, which is changed.
        parts: the paths of Modules or parameters, such as "blocks.0" or "cls_token".

    Raises:
        UnknownNameError: there is no such part, or it has no parameters; the close ones are listed.
        InputError: nothing is left to train.

    >>> layer = nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    >>> freeze(layer, ["kernel"])
    >>> sorted(nnx.to_pure_dict(nnx.state(layer, nnx.Param)))
    ['bias']
    """
    known = {prefix for _, _, path in _variables(model, (nnx.Param, Frozen)) for prefix in _prefixes(path)}
    for part in parts:
        if part not in known:
            raise UnknownNameError("part of the network", part, known)
    parts = set(parts)
    for module, name, path in _variables(model, nnx.Param):
        if parts & set(_prefixes(path)):
            setattr(module, name, _as(Frozen, getattr(module, name)))
    check(
        bool(_variables(model, nnx.Param)),
        f"some parameters must be left to train: expected a part that is not frozen, got {', '.join(sorted(parts))}.",
    )


def thaw(model: nnx.Module) -> None:
    """Makes all frozen parameters of a network plain parameters again."""
    for module, name, _ in _variables(model, Frozen):
        setattr(module, name, _as(nnx.Param, getattr(module, name)))


def keep_frozen_in_evaluation(model: nnx.Module) -> None:
    """Puts each Module with frozen parameters and no others into evaluation mode."""
    for _, module in nnx.iter_modules(model):
        if _variables(module, Frozen) and not _variables(module, nnx.Param):
            module.eval()


def _variables(model, kinds) -> list[tuple[nnx.Module, str, str]]:
    """The variables of these types: the Module that holds it, its name there, its path."""
    return [
        (module, name, ".".join(map(str, (*path, name))))
        for path, module in nnx.iter_modules(model)
        for name, value in vars(module).items()
        if isinstance(value, kinds)
    ]


def _prefixes(path):
    """The paths a, a.b and a.b.c of a.b.c."""
    names = path.split(".")
    return [".".join(names[:end]) for end in range(1, len(names) + 1)]


def _as(kind, variable):
    return kind.from_metadata(variable.get_value(), variable.get_metadata())
