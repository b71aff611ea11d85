"""Tables of finished runs, in Markdown, from their result.json and config.json.

    python -m experiments.summarize runs/results/*

Runs that differ in nothing but the seed make a row. Rows that differ in nothing but the attention are compared seed by
seed, with the mean difference of their test accuracies and its 95 % interval (Student's t).
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
        """The data, recipe, attention and epochs of the runs."""
        config = self.config
        data = config["data"]["folder"] or config["data"]["name"]
        return f"{data}, {config['preset']} recipe, {config['epochs']} epochs, attention {config['model']['attention']}"

    def accuracies(self, seeds: Sequence[int]) -> list[float]:
        """The test accuracies of these seeds."""
        return [self.results[seed]["test"]["accuracy"] for seed in seeds]

    def row(self) -> str:
        """The group as a row of the table."""
        seeds = sorted(self.results)
        accuracies = self.accuracies(seeds)
        seconds = statistics.median(result["wall_seconds"] for result in self.results.values())
        any_result = self.results[seeds[0]]
        versions, device = any_result["versions"], any_result["device"]
        cells = [
            self.label,
            ", ".join(map(str, seeds)),
            f"{statistics.median(accuracies):.4f} ({min(accuracies):.4f}–{max(accuracies):.4f})",
            f"{any_result['parameters']:,}",
            f"{seconds:.0f} s",
            f"{device['kind']} × {device['count']}, {device['cpu_cores']} cores, "
            f"jax {versions['jax']}, Python {versions['python']}",
        ]
        return f"| {' | '.join(cells)} |"


def main(config: Config) -> str:
    """The tables.

    Raises:
        InputError: a folder is not that of a finished run.
    """
    groups = read_groups(config.folders)
    lines = [
        "| runs | seeds | test accuracy: median (range) | parameters | time | on |",
        "| --- | --- | --- | --- | --- | --- |",
        *(group.row() for group in groups),
    ]
    pairs = [(a, b) for a, b in itertools.combinations(groups, 2) if _differ_in_attention_only(a, b)]
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


def _differ_in_attention_only(a, b):
    def rest(group):
        return group.config | {"model": group.config["model"] | {"attention": None}}

    return rest(a) == rest(b)


def _comparison(a, b):
    seeds = sorted(a.results.keys() & b.results.keys())
    if len(seeds) < 2:
        return
    one, other = a.accuracies(seeds), b.accuracies(seeds)
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    mean = statistics.mean(one) - statistics.mean(other)
    names = (group.config["model"]["attention"] for group in (a, b))
    yield (
        f"{' minus '.join(names)}, {a.config['data']['name']}, {a.config['preset']} recipe: "
        f"{mean:+.4f} (95 % interval {low:+.4f} to {high:+.4f}, {len(seeds)} paired seeds)"
    )


if __name__ == "__main__":
    with runs.error_screen():
        print(main(tyro.cli(Config)))
