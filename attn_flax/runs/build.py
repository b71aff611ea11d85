"""From configuration to things: data, models and optimisers."""

import ast
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from attn_flax import data
from attn_flax.catalog import create_attention
from attn_flax.checks import InputError, check
from attn_flax.models import create_model, find_pretrained, takes
from attn_flax.preprocessing import Preprocessing
from attn_flax.runs.config import DataConfig, GenerativeModelConfig, ModelConfig, OptimizerConfig
from attn_flax.runs.fine_tuning import freeze_parts, layer_factors
from attn_flax.training import Learning, Plan, create_optimizer, create_schedule
from attn_flax.training.task import Batch

IMAGES_TO_LOOK_AT = 64


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A data set as networks see it.

    Attributes:
        dataset: its splits and class names.
        kind: of its records.
        config: how it is prepared, with nothing left open: size, mean and standard deviation are filled in.
        batch_size: of training and evaluation.
        bad: counts the damaged records that are skipped, and those that are cleaned.
        tell: shows a message.
    """

    dataset: data.Dataset
    kind: data.Kind
    config: DataConfig
    batch_size: int
    bad: data.BadRecords
    tell: Callable[[str], None] = print

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, those of one labelling after those of the other."""
        return self.dataset.class_names

    @property
    def num_classes(self) -> int:
        """The number of classes, of all labellings together."""
        return len(self.class_names)

    def train_batches(self, *, seed: int, start: int = 0) -> Iterator[Batch]:
        """The endless training batches from step `start` on: that of step s is a function of (seed, s) alone."""
        return data.train_batches(
            self.dataset.train,
            seed=seed,
            augmentation=self.config.augment,
            start=start,
            workers=self.config.workers,
            **self._format,
        )

    def evaluation_batches(self, split: str) -> Iterable[Batch]:
        """The batches of "train", "validation" or "test": every example once, unless it is damaged."""
        return data.evaluation_batches(getattr(self.dataset, split), **self._format)

    @property
    def _format(self):
        return {
            "batch_size": self.batch_size,
            "shape": (*self.config.size, self.config.channels),
            "mean": self.config.mean,
            "std": self.config.std,
            "num_classes": tuple(len(names) for names in self.dataset.labellings.values()),
            "kind": self.kind,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "bad": self.bad,
        }


def build_data(
    config: DataConfig,
    *,
    kind: data.Kind = data.LABELLED_IMAGES,
    batch_size: int,
    tell: Callable[[str], None] = print,
) -> TaskData:
    """The data set of the configuration, with size, mean and standard deviation taken from its training images if open.

    Args:
        config: which set, and how to prepare it.
        kind: of its records; the options of the kind that the configuration has too are taken from there.
        batch_size: of training and evaluation, over all processes.
        tell: is given a message for each damaged record that is skipped, and for the first that are cleaned.

    Raises:
        InputError: as in `data.load_dataset`; images of several sizes and none to make of them; a channel count or
            a size below 1; an option of the kind, or an augmentation that does not fit it.
    """
    check(config.channels >= 1, f"data.channels must be at least 1, got {config.channels}.")
    check(config.size is None or min(config.size) >= 1, f"data.size must be at least 1 1, got {config.size}.")
    name = config.folder.resolve().name if config.folder else config.name
    bad = data.BadRecords(config.max_bad, tell)
    kind = _configured(kind, config)
    dataset = data.load_dataset(
        name, kind=kind, data_dir=config.dir, folder=config.folder, validation=config.validation
    )
    size = config.size or _common_size(dataset, kind, bad)
    config.augment.transforms(*size, kind)  # refuses what does not fit the kind
    mean, std = config.mean, config.std
    if mean is None or std is None:
        own_mean, own_std = data.channel_statistics(dataset.train, config.channels, kind=kind, bad=bad)
        mean, std = mean or own_mean, std or own_std
    complete = dataclasses.replace(config, size=size, mean=mean, std=std)
    built = TaskData(dataset, kind, complete, batch_size, bad, tell)
    built.evaluation_batches("test")  # refuses statistics that do not fit
    return built


def as_pretrained(data: DataConfig, model: ModelConfig) -> DataConfig:
    """How the data are prepared: where that is open, as for the pretrained network.

    Raises:
        InputError: as `create_model` for what is pretrained.
    """
    prepared = find_pretrained(model.pretrained).preprocessing
    return data if prepared is None else filled_in(data, prepared)


def filled_in(data: DataConfig, prepared: DataConfig | Preprocessing) -> DataConfig:
    """How the data are prepared, what is open as others are."""
    return dataclasses.replace(
        data, size=data.size or prepared.size, mean=data.mean or prepared.mean, std=data.std or prepared.std
    )


def without_pretrained(config: ModelConfig | GenerativeModelConfig) -> ModelConfig | GenerativeModelConfig:
    """The same network, whose numbers come from elsewhere."""
    return dataclasses.replace(config, pretrained=None) if isinstance(config, ModelConfig) else config


def build_model(
    config: ModelConfig | GenerativeModelConfig,
    data: DataConfig,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
    tell: Callable[[str], None] = print,
) -> nnx.Module:
    """The network of the configuration, for data that are prepared like that.

    The images' height and width go to the networks that take them as `image_size`.

    Raises:
        InputError: a name or an argument that does not exist, or a value that is refused.
    """
    arguments = {"dtype": jnp.dtype(config.dtype), **_parse_arguments("model.arguments", config.arguments)}
    attention_arguments = _parse_arguments("model.attention-arguments", config.attention_arguments)
    if config.attention not in ("default", "none"):
        arguments["attention"] = partial(
            create_attention, config.attention, dtype=arguments["dtype"], **attention_arguments
        )
    elif attention_arguments:
        raise InputError(
            f"attention {config.attention!r} takes no arguments, got {', '.join(config.attention_arguments)}."
        )
    elif config.attention == "none":
        arguments["attention"] = None
    if takes(config.name, "image_size"):
        arguments.setdefault("image_size", data.size)
    if isinstance(config, ModelConfig) and config.pretrained:
        arguments |= {"pretrained": config.pretrained, "tell": tell}
    model = create_model(config.name, num_classes=num_classes, in_channels=data.channels, **arguments, rngs=rngs)
    if isinstance(config, ModelConfig) and config.frozen:
        freeze_parts(model, config.frozen, data)
    return model


def build_learning(
    config: OptimizerConfig, plan: Plan, *, model: nnx.Module | None = None, data: DataConfig | None = None
) -> Learning:
    """The optimiser of the configuration, its schedule laid over the plan's steps.

    Args:
        config: which optimiser.
        plan: of the training.
        model: what it trains, if its layers may learn at rates of their own.
        data: what that takes.

    Raises:
        InputError: a name that does not exist, or a value that is refused.
    """
    check(0 <= config.warmup < 1, f"optimizer.warmup must be a share in [0, 1), got {config.warmup}.")
    warmup_steps = int(config.warmup * plan.steps)
    rate = create_schedule(config.schedule, config.learning_rate, steps=plan.steps, warmup_steps=warmup_steps)
    optimizer = create_optimizer(
        config.name,
        rate,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        factors=layer_factors(model, config.layer_decay, data),
    )
    return Learning(optimizer, accumulate=config.accumulate, ema_decay=config.ema_decay)


def _configured(kind, config):
    options = {option.name for option in dataclasses.fields(kind)} & {
        option.name for option in dataclasses.fields(config)
    }
    return dataclasses.replace(kind, **{name: getattr(config, name) for name in options})


def _common_size(dataset, kind, bad):
    """The height and width that all images have, as far as a look at some of them tells."""
    records = (bad.read(dataset.train, index) for index in range(min(len(dataset.train), IMAGES_TO_LOOK_AT)))
    seen = {record[kind.pictures].shape[-3:-1] for record in records if record}
    if not seen:
        raise data.CorruptRecordError(f"none of the first {IMAGES_TO_LOOK_AT} training images can be read.")
    if len(seen) > 1:
        (height, width), (other_height, other_width) = sorted(seen)[:2]
        raise InputError(
            f"the images of {dataset.name!r} differ in size, as {height}×{width} and {other_height}×{other_width}; "
            "expected one size: make it with --data.size, for example --data.size 64 64."
        )
    return seen.pop()


def _parse_arguments(option, pairs):
    """{"reduction": 4} of ("reduction=4",): Python literals, and what is none is a string."""
    arguments = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise InputError(f"{option} must be NAME=VALUE, got {pair!r}.")
        try:
            arguments[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            arguments[name] = value
    return arguments
