"""The configuration that experiments share; every field is an option of their command line."""

import dataclasses
from pathlib import Path
from typing import Literal

from attn_flax.data import Augmentation
from attn_flax.training.optimizers import Schedule
from attn_flax.training.parallel import Parallelism


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images, and how they are prepared."""

    name: str = "digits"
    """A set of TensorFlow Datasets, or an embedded one: `digits`, `digit_scenes`, `digit_videos`."""
    dir: Path | None = None
    """The folder of prepared TFDS sets; by default TFDS's own."""
    folder: Path | None = None
    """A folder of labelled images instead of a named set: FOLDER/CLASS/IMAGE or
    FOLDER/{train,validation,test}/CLASS/IMAGE."""
    size: tuple[int, int] | None = None
    """Resize and crop the images to this height and width; by default they keep their own, if all have the same."""
    channels: int = 3
    """The channels that the network sees; one is repeated to three."""
    validation: float = 0.1
    """The share of the training images held out to choose the best checkpoint, where the set has no validation split;
    0 trains on all of them and keeps the last checkpoint."""
    augment: Augmentation = dataclasses.field(default_factory=Augmentation)
    mean: tuple[float, ...] | None = None
    """The channels' means, in [0, 1], by which images are standardised; by default those of the training images."""
    std: tuple[float, ...] | None = None
    """The channels' standard deviations, likewise."""
    workers: int = 0
    """Processes that prepare training batches; 0 prepares them in a thread of the main one."""
    max_bad: int = 0
    """How many damaged records to skip before the run ends, in each process."""


@dataclasses.dataclass(frozen=True)
class BoxDataConfig(DataConfig):
    """The images with their boxes, and how they are prepared."""

    name: str = "digit_scenes"
    max_boxes: int = 32
    """The most boxes that an image may have; of more the largest are kept."""


@dataclasses.dataclass(frozen=True)
class VideoDataConfig(DataConfig):
    """The videos, and how clips of them are prepared."""

    name: str = "digit_videos"
    frames: int = 16
    """The frames of a clip."""
    stride: int = 1
    """A clip has every so many-th frame."""


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """A network's attention, and how it computes."""

    attention: str = "default"
    """A mechanism of `attn_flax.list_attentions()`, `none`, or by default the network's own."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the network, as NAME=VALUE."""
    attention_arguments: tuple[str, ...] = ()
    """Arguments of the mechanism, as NAME=VALUE."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type to compute in; parameters stay float32."""


@dataclasses.dataclass(frozen=True)
class ModelConfig(NetworkConfig):
    """The network and its attention."""

    name: str = "attention_net"
    """A network of `attn_flax.list_models()`."""
    pretrained: str | None = None
    """Start from timm's numbers of that network: in a file of safetensors, in a folder with model.safetensors and
    config.json, or on the Hugging Face hub. Where `data` leaves open how images are prepared, they are as for it."""
    frozen: tuple[str, ...] = ()
    """What stays as it is: the paths of parts, such as `patch_embed blocks.0`, or for an image classifier the number of
    its first stages, what leads to them included; 0 is that alone. Their batch statistics stay as they are, too."""


@dataclasses.dataclass(frozen=True)
class GenerativeModelConfig(NetworkConfig):
    """The generative network and its attention."""

    kind: Literal["gan", "vae"] = "gan"
    """A self-attention GAN, or a convolutional variational auto-encoder."""

    @property
    def name(self) -> str:
        """The network of `attn_flax.list_models()`."""
        return self.kind


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How gradients move the parameters."""

    name: str = "adamw"
    """One of adafactor, adam, adam_gan, adamw, lamb, lion, sgd."""
    learning_rate: float = 1e-3
    """The learning rate after the warm-up."""
    schedule: Schedule = "cosine"
    """What the learning rate does after the warm-up."""
    warmup: float = 0.0
    """The share of the steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """The decay of kernels and matrices; biases and scales do not decay."""
    clip_norm: float | None = None
    """Scale gradients of a larger global norm down to it."""
    accumulate: int = 1
    """Cut a batch into so many parts and average their gradients, for less memory."""
    ema_decay: float = 0.0
    """The decay of the parameters' moving average, which is then what is evaluated; 0 keeps none."""
    layer_decay: float = 1.0
    """How much slower each block of an image classifier learns than the one behind it: its learning rate and its decay
    are multiplied by this to the power of L + 1 - i for block i of L, what comes before the first being block 0."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state of the training is written down. Whatever the intervals, the best and the last are."""

    every_steps: int | None = None
    """Steps between checkpoints."""
    every_minutes: float | None = 10.0
    """Minutes between checkpoints."""
    keep: int = 2
    """How many of the latest to keep, beside the best."""


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """Several processes that train together. Start each with the same options but for its own number."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached by all."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    auto: bool = False
    """Ask the cluster for these three: Slurm, Open MPI, Kubernetes and TPU pods answer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, where and how safely to train."""

    epochs: int = 25
    """How often to see every training example."""
    batch_size: int = 64
    """The examples of a step, over all devices and processes."""
    parallel: Parallelism = "jit"
    """`jit` over a mesh of all devices, `fsdp` with parameters and moments spread over them, or `pmap` with explicit
    collectives."""
    fsdp_devices: int | None = None
    """For `fsdp`, over how many devices a state is spread; by default over all."""
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    report_every: int = 50
    """Steps between reports; the end of an epoch is always reported."""
    hung_after: float = 10.0
    """Minutes without progress after which a run tells that it hangs."""
    profile: bool = False
    """Trace some steps, into the run folder's `profile`, for TensorBoard or Perfetto."""
    seed: int = 0
    """Of the initial parameters, the order of the examples, augmentation and dropout."""
    run: Path | None = None
    """The run folder; by default a new one in runs/, named by data, model, date and time."""
    resume: bool = False
    """Go on with the run in the folder of `--run`, where there is one, with its options but for those given."""
