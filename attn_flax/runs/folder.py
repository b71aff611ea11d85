"""The folder of a run."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax

from attn_flax.checks import InputError
from attn_flax.version import __version__


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its configuration, metrics, checkpoint, result and pictures."""

    path: Path

    @classmethod
    def create(cls, path: Path | None, *, name: str) -> "RunFolder":
        """A new folder, never that of another run.

        Args:
            path: where; by default runs/NAME-DATE-TIME.
            name: of the run.

        Raises:
            InputError: the path is taken, or cannot be made.
        """
        chosen = path or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        for attempt in range(1000):
            candidate = chosen.with_name(f"{chosen.name}-{attempt}") if attempt else chosen
            try:
                candidate.mkdir(parents=True)
            except FileExistsError:
                if path is not None:
                    raise InputError(f"the run folder {path} exists already: name another, or move it away.") from None
            except OSError as error:
                raise InputError(f"the run folder {candidate} cannot be made: {error.strerror}.") from None
            else:
                return cls(candidate)
        raise InputError(f"no free name for a run folder like {chosen} was found in 1000 tries.")

    def write_json(self, name: str, content: Any) -> None:
        """Writes a dataclass or a dict as an indented JSON file."""
        if dataclasses.is_dataclass(content):
            content = dataclasses.asdict(content)
        (self.path / name).write_text(json.dumps(content, indent=2, default=str) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]


def environment() -> dict[str, Any]:
    """What a result depends on beside its configuration: versions and hardware."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "versions": {"attn_flax": __version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cpu_cores": os.cpu_count(),
        },
    }
