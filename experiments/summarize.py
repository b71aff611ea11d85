"""Tables of finished runs, in Markdown, from their result.json and config.json.

    python -m experiments.summarize runs/results/*

Runs that differ in nothing but the seed make a row, with all that their task measures on the test split but losses.
Rows that differ in nothing but the network are compared seed by seed, with the mean difference of each metric and its
95 % interval (Student's t).
"""

import dataclasses
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from scipy import stats

from attn_flax import runs
from attn_flax.checks import InputError

INDIFFERENT = {"seed", "run", "resume", "checkpoint", "distributed", "hung_after", "profile", "report_every"}
"""The options that runs of one group may differ in."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Print tables of finished runs, in Markdown."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """The run folders."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed: their configuration without it, and each seed's result."""

    config: Mapping[str, Any]
    results: dict[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """The data, recipe, epochs and network of the runs."""
        return f"{self.recipe}, {self.config['epochs']} epochs, {self.network}"

    @property
    def recipe(self) -> str:
        """The data and what the options started from."""
        data, preset = self.config["data"], self.config.get("preset")
        return ", ".join([data["folder"] or data["name"], *([f"{preset} recipe"] if preset else [])])

    @property
    def network(self) -> str:
        """The network's name or kind, its attention and its arguments."""
        model = self.config["model"]
        arguments = "".join(f" {argument}" for argument in model["arguments"])
        return f"{model.get('name') or model['kind']}{arguments}, attention {model['attention']}"

    @property
    def metrics(self) -> list[str]:
        """What the task measures on the test split, but losses."""
        return [name for name in next(iter(self.results.values()))["test"] if not name.endswith("loss")]

    def values(self, metric: str, seeds: Sequence[int]) -> list[float]:
        """A metric on the test split, of these seeds."""
        return [self.results[seed]["test"][metric] for seed in seeds]

    def row(self) -> str:
        """The group as a row of the table."""
        seeds = sorted(self.results)
        values = {name.replace("_", " "): self.values(name, seeds) for name in self.metrics}
        seconds = statistics.median(result["wall_seconds"] for result in self.results.values())
        any_result = self.results[seeds[0]]
        versions, device = any_result["versions"], any_result["device"]
        cells = [
            self.label,
            ", ".join(map(str, seeds)),
            ", ".join(f"{name} {_median_and_range(of_seeds)}" for name, of_seeds in values.items()),
            f"{any_result['parameters']:,}",
            f"{seconds:.0f} s",
            f"{device['kind']} × {device['count']}, {device['cpu_cores']} cores, "
            f"jax {versions['jax']}, Python {versions['python']}",
        ]
        return f"| {' | '.join(cells)} |"


def _median_and_range(values):
    extremes = f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.4f}{extremes}"


def main(config: Config) -> str:
    """The tables.

    Raises:
        InputError: a folder is not that of a finished run.
    """
    groups = read_groups(config.folders)
    lines = [
        "| runs | seeds | test: median (range) | parameters | time | on |",
        "| --- | --- | --- | --- | --- | --- |",
        *(group.row() for group in groups),
    ]
    pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if _differ_in_network_only(a, b)]
    return "\n".join([*lines, "", *(line for a, b in pairs for line in _comparison(a, b))]).rstrip()


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """The runs, grouped by their configuration."""
    groups = defaultdict(dict)
    for folder in folders:
        try:
            config, result = (json.loads((folder / name).read_text()) for name in ("config.json", "result.json"))
        except OSError as error:
            raise InputError(
                f"{folder} is not the folder of a finished run: expected config.json and result.json in it, "
                f"got {error.strerror} ({error.filename})."
            ) from None
        key = json.dumps({name: value for name, value in config.items() if name not in INDIFFERENT})
        groups[key][result["seed"]] = result
    return [Group(json.loads(key), results) for key, results in groups.items()]


def _differ_in_network_only(a, b):
    return a.config | {"model": None} == b.config | {"model": None}


def _comparison(a, b):
    seeds = sorted(a.results.keys() & b.results.keys())
    if len(seeds) < 2:
        return
    yield f"{a.network} minus {b.network}; {a.recipe}, {len(seeds)} paired seeds:"
    yield ""
    for metric in a.metrics:
        one, other = a.values(metric, seeds), b.values(metric, seeds)
        low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
        mean = statistics.mean(one) - statistics.mean(other)
        yield f"- {metric.replace('_', ' ')} {mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    with runs.error_screen():
        print(main(tyro.cli(Config)))
