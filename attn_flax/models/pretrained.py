"""Networks with the numbers that were trained elsewhere: timm's files, from a disk or from the Hugging Face hub."""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import load_file

from attn_flax.checks import InputError, check
from attn_flax.interop import load_timm, timm_places
from attn_flax.preprocessing import Preprocessing, read_preprocessing

WEIGHTS = "model.safetensors"
SUFFIX = ".safetensors"
CONFIG = "config.json"
PICKLES = frozenset({".bin", ".ckpt", ".pkl", ".pt", ".pth", ".tar"})
PICKLED = (
    "may be a pickle, and reading one may run any program: expected safetensors. To convert it with PyTorch: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')."
)
HUB_ID = re.compile(r"(?:hf[-_]hub:)?([\w.-]+/[\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Source:
    """A pretrained network where it lies.

    Attributes:
        name: what it was asked for by.
        weights: the file of its numbers.
        architecture: timm's name of it; None where no config.json lies beside the numbers.
        num_classes: how many classes its head has, 0 without one; None likewise.
        preprocessing: how its images were prepared; None where that is not known.
        unknown: why it is not.
    """

    name: str
    weights: Path
    architecture: str | None = None
    num_classes: int | None = None
    preprocessing: Preprocessing | None = None
    unknown: str | None = None

    def read(self) -> dict[str, np.ndarray]:
        """timm's arrays, by name.

        Raises:
            InputError: the file is damaged, or not of safetensors.
        """
        try:
            return load_file(self.weights)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.weights} is no file of safetensors, or damaged: {error}.") from None


def find_pretrained(source: str | Path) -> Source:
    """The pretrained network that a path or an identifier of the hub stands for; that of the hub is fetched.

    Args:
        source: a file of safetensors, a folder of model.safetensors and config.json, or an identifier such as
            "timm/vit_small_patch16_224.augreg_in1k".

    Raises:
        InputError: there is no such file, a file that is not read here, a config.json that cannot be read, no
            huggingface_hub, or nothing to be fetched.
    """
    path = Path(source)
    is_file = path.suffix in {SUFFIX, *PICKLES}
    if not path.exists() and not is_file and (identifier := HUB_ID.fullmatch(str(source))):
        weights, config = _fetched(identifier[1])
    else:
        weights = path / WEIGHTS if path.is_dir() else path
        config = weights.with_name(CONFIG)
        check(weights.suffix not in PICKLES, f"{weights} {PICKLED}")
        check(weights.exists(), f"there is no {weights}: expected safetensors there, or an identifier of the hub.")
    if config.exists():
        return _configured(str(source), weights, config)
    return Source(str(source), weights, unknown=f"no {CONFIG} lies beside it")


def _fetched(identifier):
    """The two files of the hub, by way of its cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(
            f"{identifier!r} is no path, and the hub needs huggingface_hub: pip install 'attn_flax[hub]'."
        ) from None
    try:
        return tuple(Path(hf_hub_download(identifier, name)) for name in (WEIGHTS, CONFIG))
    except Exception as error:  # of the hub, of its HTTP library, or of the system
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{identifier!r} is no path, and cannot be fetched from the hub: {reason}") from error


def _configured(name, weights, config):
    try:
        content = json.loads(config.read_text())
        settings = content.get("pretrained_cfg", {}) | {"num_classes": content["num_classes"]}
        source = Source(name, weights, content["architecture"], settings["num_classes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{config} is no description of a network by timm: {error!r}.") from None
    try:
        return dataclasses.replace(source, preprocessing=read_preprocessing(settings))
    except InputError as error:
        return dataclasses.replace(source, unknown=f"{CONFIG}: {error}")


def create_pretrained(
    create: Callable[..., nnx.Module],
    source: Source,
    *,
    num_classes: int | None,
    rngs: nnx.Rngs,
    tell: Callable[[str], None] = print,
) -> nnx.Module:
    """The network with the numbers of the source; its own initial ones are never drawn.

    Args:
        create: makes it, for so many classes and with `rngs`.
        source: of its numbers.
        num_classes: if others than the source has, the head is a new one; None for those of the source.
        rngs: the source of a new head's parameters, and of what is left out in training.
        tell: shows a message.

    Raises:
        InputError: the numbers do not fit, or there is no head and no number of classes.
    """
    state = source.read()
    classes = source.num_classes
    if classes is None:
        classes = _classes(state, nnx.eval_shape(lambda: create(1000, rngs=nnx.Rngs(0))))
    check(bool(classes or num_classes), f"{source.name} has no head for classes: num_classes must be given, got None.")
    model = nnx.eval_shape(lambda: create(classes or num_classes, rngs=nnx.Rngs(0)))
    load_timm(model, state if classes else _with_a_head(state, model), resample=True)
    _enliven(model, rngs)
    if num_classes not in (None, classes):
        of_file = f"for {classes} classes" if classes else "without a head"
        tell(f"{source.name} is {of_file}: the head for {num_classes} is new and untrained.")
        model.reset_classifier(num_classes, rngs=rngs)
    if source.unknown:
        tell(f"how the images of {source.name} were prepared is not known: {source.unknown}")
    model.preprocessing = source.preprocessing
    return model


def _classes(state: Mapping[str, np.ndarray], model: nnx.Module) -> int:
    """How many the head has in whose place the state has another."""
    for place in _head(model):
        if place.path.endswith("kernel") and place.name in state:
            return len(state[place.name])
    return 0


def _with_a_head(state, model):
    """The state, with zeros where the network has a head."""
    return {place.name: np.zeros(place.layout.shape(place.variable.shape)) for place in _head(model)} | state


def _head(model):
    """The places of what `reset_classifier` makes anew."""
    layers = [module for _, module in nnx.iter_modules(model.head) if isinstance(module, nnx.Linear)]
    return [place for place in timm_places(model) if any(place.owner is layer for layer in layers)]


def _enliven(model, rngs):
    """Gives what draws at random its own keys, in a network that is abstract but for its numbers."""
    for _, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.RngKey):
            variable.set_value(rngs.dropout())
        elif isinstance(variable, nnx.RngCount):
            variable.set_value(jnp.zeros((), variable.dtype))
    abstract = [leaf for leaf in jax.tree.leaves(nnx.state(model)) if isinstance(leaf, jax.ShapeDtypeStruct)]
    assert not abstract, f"{type(model).__name__} holds arrays that neither timm nor a key gives: {abstract}"
