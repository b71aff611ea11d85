"""How good a network's features are without any training of it: by a linear probe, and by nearest neighbours.

    python -m experiments.probe runs/mine --baseline                        a run's network, and the same untrained
    python -m experiments.probe runs/one runs/other --data.name cifar10
    python -m experiments.probe resnet50 --model.pretrained FILE --data.folder PHOTOS --data.size 224 224

Features are what the network's head would see, `model.pool(model.forward_features(images))`, in evaluation mode. The
linear probe is logistic regression on the standardised features of the training images, its regularisation chosen by
the accuracy on the validation images. Each of the k nearest training images, by the cosine of the features, votes for
its class with the weight exp(cosine / 0.07), as Wu, Xiong, Yu and Lin have it in "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination" (2018), arXiv:1805.01978. Both are tested once on the test images; the interval
is Wilson's, of 95 %, for other test images of the same kind.

Images are prepared as in the run's training, or as for the pretrained network.
"""

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from attn_flax import runs
from attn_flax.checks import check
from attn_flax.models.classifier import Classifier
from attn_flax.runs.build import as_pretrained, without_pretrained

REGULARIZATIONS = tuple(10.0**power for power in range(-4, 3))
NEIGHBORS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07
QUERIES_AT_ONCE = 256
VALIDATION = 0.1


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """The images; what is open is as in the run, or digits."""

    name: str | None = None
    """A set of TensorFlow Datasets, or an embedded one."""
    dir: Path | None = None
    """The folder of prepared TFDS sets."""
    folder: Path | None = None
    """A folder of labelled images instead of a named set."""
    size: tuple[int, int] | None = None
    """Resize and crop the images to this height and width, if the network is no run's."""
    max_bad: int = 0
    """How many damaged records to skip."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Probe the features of networks that classify images."""

    networks: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, or networks of `attn_flax.list_models()`."""
    model: runs.ModelConfig = dataclasses.field(default_factory=runs.ModelConfig)
    """What the networks that are no runs have beside their names."""
    data: ProbeData = dataclasses.field(default_factory=ProbeData)
    baseline: bool = False
    """Probe each network with its initial parameters, too."""
    k: int | None = 20
    """The neighbours that vote; None chooses by the accuracy on the validation images."""
    regularization: float | None = None
    """C of the logistic regression, the larger the less; None chooses by the accuracy on the validation images."""
    max_iterations: int = 1000
    """Of the logistic regression."""
    batch_size: int = 64
    """The images whose features are computed at once."""
    seed: int = 0
    """Of the initial parameters."""
    out: Path | None = None
    """The JSON file to write."""


class Split(NamedTuple):
    """Features and labels of images."""

    features: np.ndarray
    labels: np.ndarray


def main(config: Config, console: Console | None = None) -> list[dict[str, Any]]:
    """The results of each network, in a table and returned.

    Raises:
        InputError: an option is wrong, a run or the data cannot be read, or a network does not classify images.
    """
    console = console or Console()
    check(bool(config.networks), "expected run folders or names of networks, got none.")
    check(config.k is None or config.k >= 1, f"k must be at least 1, got {config.k}.")
    check(
        config.regularization is None or config.regularization > 0,
        f"regularization must be positive, got {config.regularization}.",
    )
    runs.keep_compiled_programs()
    results = []
    for name, model, data in _networks(config, console):
        splits = {split: extract(model, data, split) for split in ("train", "validation", "test")}
        results.append({"network": name, "data": data.dataset.name, **_probed(splits, config)})
    console.print(_table(results))
    if config.out:
        content = {"config": dataclasses.asdict(config), "results": results, **runs.environment()}
        config.out.write_text(json.dumps(content, indent=2, default=str) + "\n")
    return results


def extract(model: Classifier, data: runs.TaskData, split: str) -> Split:
    """The features of a split's images, computed in batches, and their labels.

    Raises:
        InputError: the network is no Classifier, whose features are defined.
    """
    check(
        isinstance(model, Classifier),
        f"features are those of networks that classify images, got {type(model).__name__}.",
    )
    model.eval()
    graph, state = nnx.split(model)

    @jax.jit
    def pooled(state, images):
        network = nnx.merge(graph, state)
        return network.pool(network.forward_features(images)).astype(jnp.float32)

    features, labels = [], []
    for batch in data.evaluation_batches(split):
        real = batch["weight"] > 0
        features.append(np.asarray(pooled(state, batch["image"]))[real])
        labels.append(batch["label"][real])
    return Split(np.concatenate(features), np.concatenate(labels))


def linear_probe(splits: Mapping[str, Split], regularization: float | None, max_iterations: int) -> dict[str, Any]:
    """How many test images logistic regression gets right, its C, and whether it came to an end."""
    scaler = StandardScaler().fit(splits["train"].features)
    scaled = {name: Split(scaler.transform(split.features), split.labels) for name, split in splits.items()}

    def fitted(c):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result tells
            return LogisticRegression(C=c, max_iter=max_iterations).fit(*scaled["train"])

    candidates = [fitted(c) for c in ((regularization,) if regularization else REGULARIZATIONS)]
    best = max(candidates, key=lambda probe: probe.score(*scaled["validation"]))
    right = int((best.predict(scaled["test"].features) == scaled["test"].labels).sum())
    return {"right": right, "regularization": best.C, "converged": bool(best.n_iter_.max() < max_iterations)}


def nearest_neighbors(splits: Mapping[str, Split], k: int | None, num_classes: int) -> dict[str, Any]:
    """How many test images their nearest neighbours among the training images get right, and how many of these vote."""
    size = len(splits["train"].labels)
    check(k is None or k <= size, f"k must be at most the number of training images, {size}, got {k}.")

    def right(split, k):
        votes = neighbor_votes(splits["train"], splits[split].features, k, num_classes)
        return int((votes.argmax(-1) == splits[split].labels).sum())

    if k is None:
        k = max((k for k in NEIGHBORS if k <= size), key=partial(right, "validation"))
    return {"right": right("test", k), "k": k}


def neighbor_votes(train: Split, queries: np.ndarray, k: int, num_classes: int) -> np.ndarray:
    """For each query and class Σ exp(cosine / τ), over those of the k nearest neighbours that are of the class."""
    keys, labels = jnp.asarray(_unit(train.features)), jnp.asarray(train.labels)

    @jax.jit
    def votes(queries):
        cosines, nearest = jax.lax.top_k(queries @ keys.T, k)
        return jnp.einsum("nk,nkc->nc", jnp.exp(cosines / TEMPERATURE), jax.nn.one_hot(labels[nearest], num_classes))

    parts = range(0, len(queries), QUERIES_AT_ONCE)
    return np.concatenate([votes(_unit(queries[start : start + QUERIES_AT_ONCE])) for start in parts])


def _unit(features):
    """Features of length one; zeros stay zeros."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _networks(config, console) -> Iterator[tuple[str, nnx.Module, runs.TaskData]]:
    """Each network, its name for the table, and the data as it takes them."""
    for name in config.networks:
        run = runs.read_run(name) if Path(name).is_dir() else None
        own = dataclasses.replace(config.model, name=name)
        prepared = _data_config(run.data if run else runs.DataConfig(size=config.data.size), config.data)
        if not run and own.pretrained:
            prepared = as_pretrained(prepared, own)
        tell = runs.teller(console)
        data = runs.build_data(prepared, batch_size=config.batch_size, tell=tell)
        build = partial(runs.build_model, data=data.config, num_classes=data.num_classes)
        if run:
            yield name, run.model, data
            own = run.folder.read_config(runs.ModelConfig, section="model")
        elif own.pretrained:
            yield f"{name}, pretrained", build(own, rngs=nnx.Rngs(config.seed), tell=tell), data
        if config.baseline or not (run or own.pretrained):
            yield f"{name}, untrained", build(without_pretrained(own), rngs=nnx.Rngs(config.seed)), data


def _data_config(own, other):
    named = {"folder": other.folder} if other.folder else {"name": other.name, "folder": None} if other.name else {}
    validation = own.validation or VALIDATION
    return dataclasses.replace(own, dir=other.dir or own.dir, max_bad=other.max_bad, validation=validation, **named)


def _probed(splits, config):
    labels = splits["test"].labels
    num_classes = 1 + max(int(split.labels.max()) for split in splits.values())
    probes = {
        "linear": linear_probe(splits, config.regularization, config.max_iterations),
        "neighbors": nearest_neighbors(splits, config.k, num_classes),
    }
    for probe in probes.values():
        right = probe.pop("right")
        interval = stats.binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
        probe |= {"accuracy": right / len(labels), "interval": [float(interval.low), float(interval.high)]}
    counts = {name: len(split.labels) for name, split in splits.items()}
    return {"features": splits["test"].features.shape[-1], "images": counts, **probes}


def _table(results):
    table = Table("network", "data", "features", "linear: accuracy (95 %)", "C", "neighbours: accuracy (95 %)", "k")
    for result in results:
        linear, neighbors = result["linear"], result["neighbors"]
        c = f"{linear['regularization']:g}" + ("" if linear["converged"] else ", not converged")
        table.add_row(
            result["network"], result["data"], str(result["features"]), _shown(linear), c, _shown(neighbors),
            str(neighbors["k"]),
        )  # fmt: skip
    return table


def _shown(probe):
    low, high = probe["interval"]
    return f"{probe['accuracy']:.4f} ({low:.4f}–{high:.4f})"


if __name__ == "__main__":
    with runs.error_screen():
        main(tyro.cli(Config))
