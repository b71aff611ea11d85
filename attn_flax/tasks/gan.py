"""Images of a class, learned against a discriminator.

    L_D = E[max(0, 1 - D(x, y))] + E[max(0, 1 + D(G(z, y), y))]
    L_G = -E[D(G(z, y), y)]

with images x and labels y of the data and z ~ N(0, I). A step makes one of the discriminator, then one of the generator
against it, each with its optimiser. What is evaluated and kept is the generator's moving average, where there is one.

Differs from the paper: the classes of generated images are those of the batch, in both steps, so that they are as
frequent as in the data.

Source: Zhang, Goodfellow, Metaxas and Odena, "Self-Attention Generative Adversarial Networks" (2018), arXiv:1805.08318;
the hinge loss is of Lim and Ye, "Geometric GAN" (2017), arXiv:1705.02894.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from attn_flax.checks import check
from attn_flax.ops import at_least_float32
from attn_flax.tasks.frechet import feature_sums, frechet_distance, moments
from attn_flax.tasks.pixels import Standardization, normal_for_images, to_bytes
from attn_flax.training import Learning, Network, TrainState, reduce_over

NETWORKS = ("discriminator", "generator")  # in the order of a tree's keys


def sample(model: nnx.Module, key: jax.Array, labels: Int[Array, " b"]) -> Float[Array, "b h w c"]:
    """Images of these classes as 8-bit pixels in [0, 1], by a network with a `generator`."""
    z = jax.random.normal(key, (len(labels), model.generator.latent_features))
    return to_bytes(model.generator(z, labels))


def discriminator_loss(real: Float[Array, "*b"], fake: Float[Array, "*b"]) -> Float[Array, ""]:
    """L_D of the scores of real and of generated images.

    >>> discriminator_loss(jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.0]))
    Array(0.75, dtype=float32)
    """
    return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


def generator_loss(fake: Float[Array, "*b"]) -> Float[Array, ""]:
    """L_G of the scores of generated images.

    >>> generator_loss(jnp.array([-3.0, 1.0]))
    Array(1., dtype=float32)
    """
    return -fake.mean()


@dataclasses.dataclass(frozen=True, eq=False)
class Gan:
    """A generator and a discriminator that learn from each other.

    A batch has "image" (b, h, w, c) and "label" (b,) of integers; in evaluation also "weight" (b,).

    Generated images are judged by a classifier of the same data: how often it sees the class that was asked for, and
    how far its features are from those of real images. This is not the FID of other papers, whose features are another
    network's.

    Attributes:
        model: the networks: `generator`, from latent vectors of its `latent_features` and labels to images in [-1, 1],
            and `discriminator`, from such images and labels to scores (b,).
        generator: how gradients move the generator.
        discriminator: how gradients move the discriminator, of which no average is kept.
        mean: by which the data's images are standardised.
        std: likewise.
        judge: the classifier, from standardised images to logits, with the methods `forward_features` and `pool`, which
            give the features that are compared; needed to evaluate.
        samples: how many images to generate for each one of a split, of its class.

    Raises:
        InputError: a mean and std that do not fit each other, an average of the discriminator, or samples below 1.
    """

    model: nnx.Module
    generator: Learning
    discriminator: Learning
    mean: Sequence[float]
    std: Sequence[float]
    judge: nnx.Module | None = None
    samples: int = 1

    def __post_init__(self):
        check(self.samples >= 1, f"samples must be at least 1, got {self.samples}.")
        check(
            self.discriminator.ema_decay == 0,
            f"the discriminator's ema_decay must be 0, got {self.discriminator.ema_decay}.",
        )
        self._standardization  # noqa: B018 refuses a mean and std that do not fit

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step, from the model's own parameters; `key` drives the latent vectors."""
        _, params, model_state = Network.split(self.model)
        parts = {name: getattr(self, name).init(params[name], model_state.get(name, {}), key) for name in NETWORKS}
        return _joined(parts, parts["generator"].key)

    def update(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> tuple[TrainState, PyTree]:
        """A step of each network; the metrics are their losses and the mean scores of real and generated images."""
        networks = {name: Network.split(getattr(self.model, name))[0] for name in NETWORKS}
        parts = {name: _part(state, name) for name in NETWORKS}

        def generated(params, model_state, labels, key):
            latent_key, key = jax.random.split(key)
            z = jax.random.normal(latent_key, (len(labels), self.model.generator.latent_features))
            return networks["generator"].train(params, model_state, z, labels, key=key, axis=axis)

        def against_fakes(params, model_state, batch, key):
            fake_key, key = jax.random.split(key)
            real = 2 * self._standardization.pixels(batch["image"]) - 1
            fake, _ = generated(state.params["generator"], state.model_state["generator"], batch["label"], fake_key)
            images = jnp.stack([real, fake.astype(real.dtype)], 1)  # side by side, so that devices keep their rows
            labels = jnp.stack([batch["label"]] * 2, 1)
            scores, model_state = networks["discriminator"].train(
                params, model_state, images, labels, key=key, axis=axis
            )
            real, fake = jnp.unstack(scores.astype(at_least_float32(scores.dtype)), axis=1)
            loss = discriminator_loss(real, fake)
            metrics = {"discriminator_loss": loss, "real_score": real.mean(), "fake_score": fake.mean()}
            return loss, (model_state, metrics)

        def against_discriminator(params, model_state, batch, key):
            fake_key, key = jax.random.split(key)
            fake, model_state = generated(params, model_state, batch["label"], fake_key)
            now = parts["discriminator"]
            scores, _ = networks["discriminator"].train(
                now.params, now.model_state, fake, batch["label"], key=key, axis=axis
            )
            loss = generator_loss(scores.astype(at_least_float32(scores.dtype)))
            return loss, (model_state, {"generator_loss": loss})

        metrics, finite = {}, []
        for name, loss in zip(NETWORKS, (against_fakes, against_discriminator), strict=True):
            parts[name], own = getattr(self, name).update(loss, parts[name], batch, axis=axis)
            finite.append(own.pop("finite"))
            metrics |= own
        return _joined(parts, state.key), metrics | {"finite": jnp.concatenate(finite)}

    def evaluate(self, state: TrainState, batch: PyTree, *, axis: str | None = None) -> PyTree:
        """The sums of the judge's features and right answers, of the batch's images and of as many generated ones."""
        check(self.judge is not None, "generated images are judged by a classifier, got none.")
        labels, weight = (batch[name].repeat(self.samples) for name in ("label", "weight"))
        model = self.module(state)
        shape = (self.samples, model.generator.latent_features)
        z = normal_for_images(batch["image"], shape).reshape(-1, shape[-1])
        fake = self._standardization.standardize(to_bytes(model.generator(z, labels)))
        sums = {
            "real": self._judged(batch["image"], batch["label"], batch["weight"]),
            "generated": self._judged(fake, labels, weight),
        }
        return reduce_over(axis, sums)

    def module(self, state: TrainState) -> nnx.Module:
        """The networks in evaluation mode, with the averages of the generator's parameters where there are any."""
        network, _, _ = Network.split(self.model)
        return network.merge(*state.evaluated)

    def summarize(self, sums: PyTree) -> dict[str, float]:
        """The Fréchet distance; how often the judge sees the class asked for; and how often that of real images."""
        real, generated = sums["real"], sums["generated"]
        return {
            "frechet_distance": frechet_distance(moments(real["features"]), moments(generated["features"])),
            "label_accuracy": float(generated["correct"] / generated["features"]["count"]),
            "judge_accuracy": float(real["correct"] / real["features"]["count"]),
        }

    def score(self, metrics: Mapping[str, float]) -> tuple[float, ...]:
        """Minus the Fréchet distance, which also sees what a generator leaves out; among equals the label accuracy."""
        return -metrics["frechet_distance"], metrics["label_accuracy"]

    @property
    def _standardization(self):
        return Standardization(self.mean, self.std)

    def _judged(self, images, labels, weight):
        correct = self.judge(images).argmax(-1) == labels
        features = self.judge.pool(self.judge.forward_features(images))
        return {
            "features": feature_sums(features, weight),
            "correct": (correct * weight).sum(),
        }


def _part(state, name):
    """What one network's learning sees of the state; each draws numbers of its own."""
    key = jax.random.fold_in(state.key, NETWORKS.index(name))
    ema = None
    if name == "generator" and state.ema:
        ema = tuple(tree[name] for tree in state.ema)
    return TrainState(state.step, state.params[name], state.model_state[name], state.opt_state[name], ema, key)


def _joined(parts, key):
    """The state of both networks: among the averages, if the generator has any, stands the discriminator as it is."""

    def field(get):
        return {name: get(part) for name, part in parts.items()}

    ema = None
    if parts["generator"].ema:
        ema = tuple(field(lambda part: jax.tree.map(jnp.copy, part.evaluated[i])) for i in range(2))  # noqa: B023
    return TrainState(
        step=parts["generator"].step,
        params=field(lambda part: part.params),
        model_state=field(lambda part: part.model_state),
        opt_state=field(lambda part: part.opt_state),
        ema=ema,
        key=key,
    )
