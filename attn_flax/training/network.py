"""A Module as a pure function of its variables."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from attn_flax.training.freezing import keep_frozen_in_evaluation
from attn_flax.training.leaves import is_key


@dataclasses.dataclass(frozen=True)
class Network:
    """What remains of a Module when its parameters and its state are taken out.

    Attributes:
        graphdef: its structure.
        rng_state: the variables of its random streams, replaced by every call in training.
    """

    graphdef: nnx.GraphDef
    rng_state: PyTree

    @classmethod
    def split(cls, module: nnx.Module) -> tuple["Network", PyTree, PyTree]:
        """The network, its parameters and its other state, both as nested dicts of arrays.

        The other state are batch statistics, and the parameters that are frozen.
        """
        graphdef, params, rng_state, model_state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        pure = nnx.to_pure_dict
        return cls(graphdef, pure(rng_state)), pure(params), pure(model_state)

    def merge(self, params: PyTree, model_state: PyTree) -> nnx.Module:
        """The Module with these variables, in evaluation mode."""
        module = nnx.merge(self.graphdef, params, self.rng_state, model_state)
        module.eval()
        return module

    def train(
        self,
        params: PyTree,
        model_state: PyTree,
        *inputs: Any,
        key: jax.Array,
        axis: str | None = None,
        method: str = "__call__",
    ) -> tuple[Any, PyTree]:
        """The Module's output in training mode, that of frozen parts in evaluation mode, and its new state.

        Args:
            params: the parameters.
            model_state: the other state.
            *inputs: those of the Module.
            key: drives every random stream of the Module; equal keys, equal output.
            axis: the mapped axis over which batch statistics are taken together, where there is one.
            method: what of the Module gives the output.
        """
        module = nnx.merge(self.graphdef, params, self._reseeded(key), model_state)
        module.train()
        keep_frozen_in_evaluation(module)
        for _, submodule in nnx.iter_modules(module):
            if isinstance(submodule, nnx.BatchNorm):
                submodule.axis_name = axis
        out = getattr(module, method)(*inputs)
        new_state = nnx.state(module, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))
        return out, nnx.to_pure_dict(new_state)

    def _reseeded(self, key):
        leaves, structure = jax.tree.flatten(self.rng_state)
        fresh = [
            # Modules under vmap hold an array of keys; what is no key counts a stream's draws.
            jax.random.split(jax.random.fold_in(key, i), leaf.shape) if is_key(leaf) else jnp.zeros_like(leaf)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, fresh)
