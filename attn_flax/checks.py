"""The refusals: errors that say what was wrong, what was expected and what was given.

The lowest room. Every error that a user can cause is an `InputError`; anything else is a bug of ours.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence

NAMES_SHOWN = 30


class InputError(ValueError):
    """Something its user controls is wrong; the message says what, what was expected and what was given."""


class UnknownNameError(InputError):
    """A name that its table does not hold; the message lists the close ones, or else the first thirty."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)
        close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {listed(known, NAMES_SHOWN)}."
        super().__init__(f"unknown {kind} {name!r}: {hint}")


def listed(names: Sequence[str], limit: int) -> str:
    """The first names, and how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b", "c"], 3)
    ('a, b and 1 more', 'a, b, c')
    """
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def check(condition: bool, message: str) -> None:
    """Raises `InputError(message)` unless the condition holds.

    >>> check(7 % 2 == 0, "size must be even, got 7.")
    Traceback (most recent call last):
    ...
    attn_flax.checks.InputError: size must be even, got 7.
    """
    if not condition:
        raise InputError(message)


def check_same_size(*, axes: tuple[int, int], **shapes: tuple) -> None:
    """Raises InputError unless two named arrays agree in an axis each; einsum would repeat an axis of size one unasked.

    >>> check_same_size(q=(4, 3), k=(5, 1), axes=(-1, -1))
    Traceback (most recent call last):
    ...
    attn_flax.checks.InputError: axis -1 of q and axis -1 of k must be of one size, got shapes (4, 3) and (5, 1).
    """
    (one, shape), (other, other_shape) = shapes.items()
    check(
        shape[axes[0]] == other_shape[axes[1]],
        f"axis {axes[0]} of {one} and axis {axes[1]} of {other} must be of one size, "
        f"got shapes {shape} and {other_shape}.",
    )


def arguments_of(factory: Callable) -> set[str]:
    """The names of the arguments that a class or function takes."""
    # A Module's class hides its signature behind its metaclass.
    return inspect.signature(factory.__init__ if inspect.isclass(factory) else factory).parameters.keys() - {"self"}


def check_arguments(name: str, factory: Callable, arguments: Iterable[str]) -> None:
    """Raises UnknownNameError for an argument that `factory`, the class or function of that name, does not take."""
    known = arguments_of(factory)
    for argument in arguments:
        if argument not in known:
            raise UnknownNameError(f"{name} argument", argument, known)
