"""The folder of a run."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, TypeVar

import cattrs
import jax
from cattrs.preconf.json import make_converter

from attn_flax.checks import InputError
from attn_flax.files import write_whole
from attn_flax.runs.processes import from_first, is_first
from attn_flax.version import __version__

Config = TypeVar("Config")
_CONVERTER = make_converter(forbid_extra_keys=True)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run leaves its configuration, metrics, checkpoints, result and pictures.

    Every process has it; what they write through it, the first one writes.
    """

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
        return cls(Path(from_first(lambda: str(_new_folder(path, name)))))

    @classmethod
    def open(cls, path: Path | None, *, name: str, resume: bool) -> "RunFolder":
        """The folder that a run goes on in, or a new one.

        Args:
            path: as in `create`.
            name: as in `create`.
            resume: take the folder of an earlier run, if it is there.

        Raises:
            InputError: as in `create`, or there is no path to resume.
        """
        if resume and path is None:
            raise InputError("--resume needs the folder to go on in: expected --run RUN, got none.")
        if resume and from_first(lambda: _is_resumable(path)):
            return cls(path)
        return cls.create(path, name=name)

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.path / "checkpoints"

    def write_json(self, name: str, content: Any) -> None:
        """Writes a dataclass or a dict as an indented JSON file, whole or not at all."""
        if is_first():
            write_whole(self.path / name, json.dumps(as_json(content), indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            InputError: it is not there or no JSON.
        """
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} is no folder of a run: {name} cannot be read: {error}") from None

    def read_config(self, kind: type[Config], *, section: str | None = None) -> Config:
        """Its configuration, or a section of that, as the dataclass that it was.

        Raises:
            InputError: it is not there, or is another experiment's.
        """
        content = self.read_json("config.json")
        try:
            return _CONVERTER.structure(content if section is None else content[section], kind)
        except (KeyError, cattrs.BaseValidationError) as error:
            reasons = (
                [f"no section {section!r}"]
                if isinstance(error, KeyError)
                else cattrs.transform_error(error, path="config")
            )
            raise InputError(
                f"{self.path / 'config.json'} is not the configuration expected here: {'; '.join(reasons[:5])}."
            ) from None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a line that a dying process left unfinished is not one."""
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind_metrics(self, step: int) -> None:
        """Takes the records of this step and later ones out of metrics.jsonl; a run that goes on makes them anew."""
        if is_first():
            kept = [json.dumps(record) + "\n" for record in self.read_metrics() if record["step"] < step]
            write_whole(self.path / "metrics.jsonl", "".join(kept))


def as_json(content: Any) -> Any:
    """A dataclass or a dict as JSON reads it back; a path becomes a string."""
    if dataclasses.is_dataclass(content):
        content = dataclasses.asdict(content)
    return json.loads(json.dumps(content, default=str))


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
            "processes": jax.process_count(),
            "cpu_cores": os.cpu_count(),
        },
    }


def _is_resumable(path):
    """Whether a run can go on in a folder; a run that died before it wrote anything leaves an empty one."""
    if not path.is_dir():
        return False
    if (path / "config.json").exists() or all(entry.name.startswith(".") for entry in path.iterdir()):
        return True
    raise InputError(f"{path} is no folder of a run: expected config.json in it, got none. Name another.")


def _new_folder(path, name):
    chosen = path or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1000):
        candidate = chosen.with_name(f"{chosen.name}-{attempt}") if attempt else chosen
        try:
            candidate.mkdir(parents=True)
        except FileExistsError:
            if path is not None:
                raise InputError(
                    f"the run folder {path} exists already: go on with it by --resume, name another, or move it away."
                ) from None
        except OSError as error:
            raise InputError(f"the run folder {candidate} cannot be made: {error.strerror}.") from None
        else:
            return candidate
    raise InputError(f"no free name for a run folder like {chosen} was found in 1000 tries.")
