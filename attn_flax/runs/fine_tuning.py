"""Fine-tuning: what of a network stays as it is, and how slowly its layers learn."""

from collections.abc import Sequence

from flax import nnx
from jaxtyping import PyTree

from attn_flax.checks import check
from attn_flax.models.classifier import Classifier
from attn_flax.models.order import first_stages, layer_decay_factors
from attn_flax.runs.config import DataConfig
from attn_flax.training import freeze


def freeze_parts(model: nnx.Module, parts: Sequence[str], data: DataConfig) -> None:
    """Freezes the parts of these paths; a number stands for so many stages of an image classifier.

    Raises:
        InputError: there is no such part, or nothing is left to train.
    """
    names = [part for part in parts if not part.isdecimal()]
    for number in (int(part) for part in parts if part.isdecimal()):
        _check_classifier(model, f"the number of stages in model.frozen, {number},")
        names += first_stages(model, number, (*data.size, data.channels))
    freeze(model, names)


def layer_factors(model: nnx.Module | None, decay: float, data: DataConfig | None) -> PyTree | None:
    """What the learning rate of each parameter is multiplied by, in the tree of those that are trained; None for one.

    Raises:
        InputError: a decay outside (0, 1], or a network that does not tell its layers' order.
    """
    check(0 < decay <= 1, f"optimizer.layer_decay must be in (0, 1], got {decay}.")
    if decay == 1:
        return None
    _check_classifier(model, f"optimizer.layer_decay {decay}")
    return layer_decay_factors(model, decay, (*data.size, data.channels))


def _check_classifier(model, what):
    check(isinstance(model, Classifier), f"{what} is for image classifiers, got {type(model).__name__}.")
