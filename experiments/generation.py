"""Train a network to make images, and see what it makes.

    python -m experiments.generation                                  a self-attention GAN on scanned digits, by class
    python -m experiments.generation --model.kind vae                 a variational autoencoder
    python -m experiments.generation --model.kind vae --model.attention none
    python -m experiments.generation --data.name cifar10 --data.dir DIR --data.channels 3

The run folder gets config.json, metrics.jsonl, TensorBoard event files, the best checkpoint, result.json with the test
metrics, and pictures: learning curves, samples, attention maps; of an autoencoder also reconstructions, and the ways
from one image to the next.

A GAN is judged by a classifier of ours, which is trained first, on the same images, in the run's folder `judge`: by how
often it sees the class that was asked for, and by the Fréchet distance between its features of real and of generated
images. This is not the FID of papers, whose features are those of Inception on ImageNet.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console

from attn_flax import explain, runs, training
from attn_flax.checks import check
from attn_flax.data import LABELLED_IMAGES, find_images, read_images
from attn_flax.models import Sagan
from attn_flax.tasks import Gan, Vae, gan, vae
from experiments import classification

ROWS_DRAWN = 20
COLUMNS_DRAWN = 10
LEVELS_OF_DIGITS = 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(runs.TrainingConfig):
    """Train a network to make images, and see what it makes."""

    task: tyro.conf.Suppress[Literal["generation"]] = "generation"
    data: runs.DataConfig = dataclasses.field(default_factory=partial(runs.DataConfig, channels=1))
    model: runs.GenerativeModelConfig = dataclasses.field(default_factory=runs.GenerativeModelConfig)
    optimizer: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    """Of the autoencoder, or of the GAN's generator."""
    discriminator: runs.OptimizerConfig = dataclasses.field(default_factory=runs.OptimizerConfig)
    """Of the GAN's discriminator."""
    judge_epochs: int = 25
    """How often the classifier that judges a GAN sees every training image."""
    samples: int = 4
    """How many images a GAN makes for each one of a split, when it is judged."""
    beta: float = 1.0
    """The weight of the divergence in an autoencoder's loss."""
    levels: int | None = None
    """How many values a pixel has, which an autoencoder's bits per dimension are of: by default 17 for the embedded
    digits in their own size, else 256."""


PRESETS = {
    "gan": Config(
        optimizer=runs.OptimizerConfig(name="adam_gan", learning_rate=2e-4, schedule="constant", ema_decay=0.999),
        discriminator=runs.OptimizerConfig(name="adam_gan", learning_rate=4e-4, schedule="constant"),
        epochs=80,
    ),
    "vae": Config(
        model=runs.GenerativeModelConfig(kind="vae"),
        optimizer=runs.OptimizerConfig(learning_rate=2e-3, warmup=0.05, weight_decay=0.01, ema_decay=0.99),
        epochs=100,
    ),
}


def main(config: Config, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Raises:
        InputError: something in the configuration, or an image, is wrong.
        StoppedError: a signal ended the training.
    """
    return runs.conduct(EXPERIMENT, config, console)


def build_task(config: Config, data: runs.TaskData, plan: training.Plan) -> Gan | Vae:
    """What the data's images are made by; a GAN still lacks its judge."""
    model = runs.build_model(config.model, data.config, num_classes=data.num_classes, rngs=nnx.Rngs(config.seed))
    learning = runs.build_learning(config.optimizer, plan)
    standardized = {"mean": data.config.mean, "std": data.config.std}
    if config.model.kind == "vae":
        return Vae(model, learning, **standardized, levels=_levels(config, data), beta=config.beta)
    check(config.judge_epochs >= 1, f"judge_epochs must be at least 1, got {config.judge_epochs}.")
    discriminator = runs.build_learning(config.discriminator, plan)
    return Gan(model, learning, discriminator, **standardized, samples=config.samples)


def prepare(config: Config, task: Gan | Vae, folder: runs.RunFolder, console: Console) -> Gan | Vae:
    """The task; a GAN with its judge, a classifier that is trained in the folder `judge` unless it has been."""
    if isinstance(task, Vae):
        return task
    recipe = classification.PRESETS["default"]
    judge = dataclasses.replace(
        recipe,
        data=dataclasses.replace(config.data, augment=recipe.data.augment),
        epochs=config.judge_epochs,
        batch_size=config.batch_size,
        parallel=config.parallel,
        fsdp_devices=config.fsdp_devices,
        seed=config.seed,
        run=folder.path / "judge",
        resume=True,
    )
    console.print("the judge is a classifier of the same images:")
    classification.main(judge, console)
    return dataclasses.replace(task, judge=runs.load_run(judge.run))


def draw(folder: runs.RunFolder, data: runs.TaskData, trained: runs.Trained, console: Console) -> None:
    """The run's pictures."""
    model, key, out = trained.task.module(trained.state), trained.state.key, folder.path
    curves = {
        Gan: ("discriminator_loss", "generator_loss", "frechet_distance", "label_accuracy"),
        Vae: ("bits_per_dim", "distortion", "rate"),
    }
    explain.draw_learning_curves(folder.read_metrics(), out / "learning_curves.png", curves[type(trained.task)])
    if isinstance(trained.task, Gan):
        _draw_classes(model, key, data.class_names, out)
    else:
        batch = next(iter(data.evaluation_batches("test")))
        _draw_samples(model, key, out)
        _draw_images(model, batch["image"][batch["weight"] > 0][:COLUMNS_DRAWN], out, data.config)


def predict(run: runs.TrainedRun, names: Sequence[str], out: Path, console: Console) -> list[dict[str, Any]]:
    """Samples of all classes by a GAN, samples by an autoencoder; or what an autoencoder makes of images.

    Args:
        run: what was trained.
        names: images for an autoencoder to reconstruct, and to go from one to the next of them; none for samples.
        out: the folder of the pictures.
        console: gets a line for each picture.

    Raises:
        InputError: a name is given to a GAN, or stands for no image, or an image is damaged.
    """
    key = jax.random.key(0)
    if isinstance(run.model, Sagan):
        check(not names, f"a GAN makes images of nothing: expected no names, got {', '.join(names)}.")
        pictures = _draw_classes(run.model, key, run.class_names, out)
    elif names:
        images = np.concatenate([read_images([file], **run.format) for file in find_images(names)])
        pictures = _draw_images(run.model, images, out, run.data)
    else:
        pictures = _draw_samples(run.model, key, out)
    for picture in pictures:
        console.print(str(picture), highlight=False, markup=False, soft_wrap=True)
    return [{"picture": str(picture)} for picture in pictures]


def _levels(config, data):
    if config.levels is not None:
        return config.levels
    as_scanned = config.data.name == "digits" and config.data.folder is None and data.config.size == (8, 8)
    return LEVELS_OF_DIGITS if as_scanned else 256


def _draw_classes(model, key, class_names, out):
    """Samples of a GAN, a row for each class, and what its generator attends to."""
    rows = min(len(class_names), ROWS_DRAWN)
    labels = jnp.arange(rows).repeat(COLUMNS_DRAWN)
    images = np.asarray(gan.sample(model, key, labels)).reshape(rows, COLUMNS_DRAWN, *model.image_shape)
    explain.draw_samples(dict(zip(class_names, images, strict=False)), out / "samples.png")
    latents = jax.random.normal(key, (len(labels), model.generator.latent_features))
    some = slice(None, None, COLUMNS_DRAWN)
    return [out / "samples.png", *_draw_maps(model, images[:, 0], (latents[some], labels[some]), out)]


def _draw_samples(model, key, out):
    """Samples of an autoencoder."""
    images = np.asarray(vae.sample(model, key, COLUMNS_DRAWN**2)).reshape(
        COLUMNS_DRAWN, COLUMNS_DRAWN, *model.image_shape
    )
    explain.draw_samples({f"{row + 1}": images[row] for row in range(COLUMNS_DRAWN)}, out / "samples.png")
    return [out / "samples.png"]


def _draw_images(model, images, out, config):
    """What an autoencoder makes of images: reconstructions, the way from each to the next, what it attends to."""
    pixels = np.clip(images * np.array(config.std) + np.array(config.mean), 0, 1)
    images = jnp.asarray(images)
    rows = {"image": pixels, "reconstruction": np.asarray(vae.reconstruct(model, images))}
    explain.draw_samples(rows, out / "reconstructions.png")
    pictures = [out / "reconstructions.png"]
    if len(images) > 1:
        ways = np.asarray(vae.interpolate(model, images[:-1], images[1:], COLUMNS_DRAWN))
        rows = {f"{number + 1} to {number + 2}": way for number, way in enumerate(ways)}
        explain.draw_samples(rows, out / "interpolations.png")
        pictures.append(out / "interpolations.png")
    noise = jnp.zeros((len(images), model.latent_features))
    return [*pictures, *_draw_maps(model, pixels, (images, noise), out)]


def _draw_maps(model, images, inputs, out):
    maps = explain.attention_maps(model, *inputs)
    if not maps:
        return []
    explain.draw_attention_maps(images, maps, out / "attention_maps.png")
    return [out / "attention_maps.png"]


EXPERIMENT = runs.Experiment(LABELLED_IMAGES, build_task, draw, prepare)

if __name__ == "__main__":
    with runs.error_screen():
        main(runs.parse(PRESETS, chosen_by="--model.kind"))
