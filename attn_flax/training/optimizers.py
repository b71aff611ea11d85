"""Optimisers and schedules by name, all of them optax's."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from attn_flax.checks import UnknownNameError, check

Schedule = Literal["constant", "cosine"]


def decayed(params: PyTree) -> PyTree:
    """Which parameters weight decay applies to: matrices and kernels, not biases, scales and other vectors."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _sgd(learning_rate, weight_decay):
    return optax.chain(
        optax.add_decayed_weights(weight_decay, decayed), optax.sgd(learning_rate, momentum=0.9, nesterov=True)
    )


def _adam(learning_rate, weight_decay):
    check(weight_decay == 0, f"adam takes no weight decay, got {weight_decay}; adamw does.")
    return optax.adam(learning_rate)


def _adam_gan(learning_rate, weight_decay):
    check(weight_decay == 0, f"adam_gan takes no weight decay, got {weight_decay}; adamw does.")
    return optax.adam(learning_rate, b1=0.0, b2=0.9)


def _adamw(learning_rate, weight_decay):
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)


def _lamb(learning_rate, weight_decay):
    return optax.lamb(learning_rate, weight_decay=weight_decay, mask=decayed)


def _lion(learning_rate, weight_decay):
    return optax.lion(learning_rate, weight_decay=weight_decay, mask=decayed)


def _adafactor(learning_rate, weight_decay):
    return optax.adafactor(learning_rate, weight_decay_rate=weight_decay or None, weight_decay_mask=decayed)


OPTIMIZERS = {
    "adafactor": _adafactor,
    "adam": _adam,
    "adam_gan": _adam_gan,
    "adamw": _adamw,
    "lamb": _lamb,
    "lion": _lion,
    "sgd": _sgd,
}


def list_optimizers() -> list[str]:
    """The names that `create_optimizer` knows.

    >>> list_optimizers()
    ['adafactor', 'adam', 'adam_gan', 'adamw', 'lamb', 'lion', 'sgd']
    """
    return sorted(OPTIMIZERS)


def create_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    factors: PyTree | None = None,
) -> optax.GradientTransformation:
    """The optimiser of that name.

    Args:
        name: one of `list_optimizers()`; sgd has Nesterov momentum 0.9, adam_gan the β₁ = 0 and β₂ = 0.9 of SAGAN, the
            others optax's defaults.
        learning_rate: a number, or a schedule of the step.
        weight_decay: the decay of matrices and kernels, `decayed`; times the learning rate, except in adafactor, where
            optax applies it as it is.
        clip_norm: gradients of a larger global norm are scaled down to it.
        factors: of the steps of each parameter, decay included, in the parameters' tree.

    Raises:
        UnknownNameError: there is no such optimiser; the close names are listed.
        InputError: a negative decay, a clip norm that is not positive, or a decay for one that has
            none, adam and adam_gan.
    """
    if name not in OPTIMIZERS:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    check(weight_decay >= 0, f"weight_decay must not be negative, got {weight_decay}.")
    check(clip_norm is None or clip_norm > 0, f"clip_norm must be positive or None, got {clip_norm}.")
    optimizer = OPTIMIZERS[name](learning_rate, weight_decay)
    if factors is not None:
        optimizer = optax.chain(optimizer, optax.stateless(lambda steps, _: jax.tree.map(jnp.multiply, steps, factors)))
    return optimizer if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def create_schedule(name: Schedule, peak: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """The learning rate of each step: a linear warm-up from 0 to the peak, then constant or half a cosine to 0.

    >>> rate = create_schedule("cosine", 1.0, steps=30, warmup_steps=10)
    >>> [round(float(rate(s)), 3) for s in (0, 5, 10, 20, 30)]
    [0.0, 0.5, 1.0, 0.5, 0.0]

    Raises:
        InputError: an unknown schedule, a peak that is not positive, or a warm-up that leaves no step.
    """
    check(name in get_args(Schedule), f"schedule must be 'constant' or 'cosine', got {name!r}.")
    check(peak > 0, f"the learning rate must be positive, got {peak}.")
    check(0 <= warmup_steps < steps, f"the warm-up must be shorter than the {steps} steps, got {warmup_steps}.")
    if name == "cosine":
        after = optax.cosine_decay_schedule(peak, steps - warmup_steps)
    else:
        after = optax.constant_schedule(peak)
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps]) if warmup_steps else after
