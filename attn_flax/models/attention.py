"""What networks take as their attention."""

from typing import Protocol, runtime_checkable

from flax import nnx


@runtime_checkable
class AttentionFactory(Protocol):
    """What a network asks of its attention argument: a module for features of so many channels."""

    def __call__(self, channels: int, *, rngs: nnx.Rngs) -> nnx.Module: ...
