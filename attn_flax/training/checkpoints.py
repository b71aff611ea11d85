"""Checkpoints, written by Orbax beside the training, proven intact when they are read."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from attn_flax.checks import InputError, listed
from attn_flax.files import write_whole
from attn_flax.training.digests import digest, seal, unseal
from attn_flax.training.leaves import check_architecture, from_named_leaves, named_leaves
from attn_flax.training.quiet import quiet
from attn_flax.training.step import TrainState

NAMES_SHOWN = 12
SCORE = "score.json"
Score = tuple[float, ...]


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or none that can be read."""


class DamagedCheckpointError(InputError):
    """A checkpoint of which something is missing or changed."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint gives back.

    Attributes:
        step: how many updates had been made.
        state: the state, in the layout of the one it was restored like.
        past: the metrics of the steps since the last report, whose step's own reports were not made yet.
    """

    step: int
    state: TrainState
    past: list[dict[str, float]]


class Checkpoints:
    """The checkpoints of a run: the latest ones, and the best.

    A checkpoint holds the whole TrainState, whatever its layout over devices, with the configuration of its run and a
    digest of every leaf. Writing goes on in the background; what a process leaves behind that dies meanwhile is no
    checkpoint, and is cleaned up by the next.

    Args:
        folder: where they are, one folder for each step.
        keep: how many of the latest to keep.
        config: the configuration of the run, as JSON has it.
        tell: shows a message.
        read_only: whether to leave the folder as it is, in which another process may be writing.

    Raises:
        CheckpointError: the folder cannot be made or read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        config: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = print,
        read_only: bool = False,
    ):
        self._folder = folder.resolve()
        self._config = config
        self._tell = tell
        self._scores: dict[int, Score] = {}
        self._writing: Future | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        with self._refusing("opened"), quiet():
            if not read_only:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._folder, options=self._options(keep, read_only))
        for step in self.steps:
            with contextlib.suppress(OSError, ValueError, KeyError):
                self._scores[step] = tuple(unseal(json.loads((self._folder / str(step) / SCORE).read_text())))

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, in their order."""
        return sorted(self._manager.all_steps())

    @property
    def best_score(self) -> Score | None:
        """The highest score of a checkpoint that has one."""
        return max(self._scores.values(), default=None)

    def save(
        self, step: int, state: TrainState, *, past: Sequence[Mapping[str, float]] = (), score: Score | None = None
    ) -> None:
        """Begins to write a checkpoint; waits for the one before to be written.

        Args:
            step: how many updates have been made.
            state: as `Runner.portable` gives it; it may be used up as soon as this returns.
            past: as in `Restored`.
            score: on the validation split; higher is better.

        Raises:
            CheckpointError: this one or the one before cannot be written; those that are complete stay as they are.
        """
        leaves = named_leaves(state)
        copies, digests = _copied(leaves)
        described = {name: _describe(leaf) for name, leaf in leaves.items()}
        for name, value in jax.device_get(digests).items():
            described[name]["digest"] = value.tolist()
        record = {"leaves": described, "past": list(past), "config": self._config}
        args = ocp.args.Composite(state=ocp.args.StandardSave(copies), record=ocp.args.JsonSave(seal(record)))
        self.close()
        if score is not None:
            self._scores[step] = score  # before Orbax asks which to keep
        self._writing = self._writer.submit(self._write, step, args)

    def rate(self, step: int, score: Score) -> None:
        """Gives a checkpoint that has none its score.

        Raises:
            CheckpointError: as `save`.
        """
        self.close()
        self._scores[step] = score
        self._writing = self._writer.submit(self._write_score, step)

    def restore(self, like: TrainState, *, best: bool = False) -> Restored:
        """The latest intact checkpoint, or the one with the best score; of a damaged one it tells, and takes the next.

        Args:
            like: a state as `Runner.portable` gives it; its values do not matter.
            best: the highest score first, instead of the latest.

        Raises:
            ArchitectureError: the checkpoint has other leaves; the message lists them by path and shape.
            CheckpointError: no checkpoint is intact.
        """
        return self._first_intact(best, lambda step, record: self._restore(step, record, like))

    def read(self, *, best: bool = False) -> tuple[int, dict[str, np.ndarray]]:
        """The step, and the leaves by their names, of the checkpoint that `restore` would take.

        Raises:
            CheckpointError: no checkpoint is intact.
        """

        def whole(step, record):
            like = {name: np.empty(leaf["shape"], leaf["dtype"]) for name, leaf in record["leaves"].items()}
            return step, self._read_leaves(step, record, like)

        return self._first_intact(best, whole)

    def forget_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run that goes on from here writes anew."""
        for later in [later for later in self.steps if later > step]:
            self._manager.delete(later)
            self._scores.pop(later, None)

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            CheckpointError: it cannot be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            with self._refusing("written"):
                writing.result()

    def _options(self, keep, read_only):
        return ocp.CheckpointManagerOptions(
            create=False,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            preservation_policy=_LatestAndBest(keep, self._rank),
            save_root_metadata=False,
            # Orbax's own asynchronous writing waits for minutes where a folder cannot be made.
            enable_async_checkpointing=False,
            # Named, processes wait for each other without the devices, which the training needs meanwhile.
            multiprocessing_options=MultiprocessingOptions(active_processes=set(range(jax.process_count()))),
        )

    def _write(self, step, args):
        if not self._folder.is_dir():
            raise FileNotFoundError("the folder has vanished")
        with quiet():
            self._manager.save(step, args=args, force=True)
        if step in self._scores:
            self._write_score(step)

    def _write_score(self, step):
        if jax.process_index() == 0:
            write_whole(self._folder / str(step) / SCORE, json.dumps(seal(self._scores[step])))

    def _rank(self, step):
        """Of equal scores the earliest step is the best; without any, the latest."""
        return (self._scores[step], -step) if step in self._scores else ((), step)

    def _first_intact(self, best, read):
        self.close()
        steps = sorted(self.steps, key=self._rank if best else None, reverse=True)
        for step in steps:
            try:
                return read(step, self._read_record(step))
            except DamagedCheckpointError as error:
                self._tell(f"checkpoint {step} is damaged and not used: {error}")
        raise CheckpointError(
            f"no intact checkpoint was found in {self._folder}: expected at least one, got "
            f"{f'{len(steps)} damaged' if steps else 'none'}."
        )

    def _restore(self, step, record, like):
        leaves = named_leaves(like)
        saved = {name: jax.ShapeDtypeStruct(leaf["shape"], leaf["dtype"]) for name, leaf in record["leaves"].items()}
        check_architecture(step, saved, leaves)
        arrays = self._read_leaves(step, record, jax.tree.map(_abstract, leaves))
        return Restored(step, from_named_leaves(arrays, like), record["past"])

    def _read_leaves(self, step, record, like):
        with _damage_of(step):
            args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
            arrays = self._manager.restore(step, args=args)["state"]
        digests = jax.device_get(_digests(arrays))
        changed = [name for name, leaf in record["leaves"].items() if digests[name].tolist() != leaf["digest"]]
        if changed:
            raise DamagedCheckpointError(
                f"the digests of {listed(changed, NAMES_SHOWN)} are not those written with it."
            )
        return arrays

    def _read_record(self, step):
        with _damage_of(step):
            args = ocp.args.Composite(record=ocp.args.JsonRestore())
            return unseal(self._manager.restore(step, args=args)["record"])

    @contextlib.contextmanager
    def _refusing(self, what):
        try:
            yield
        except Exception as error:  # Orbax and TensorStore have many for a disk that is full, gone or not ours
            raise CheckpointError(
                f"checkpoints in {self._folder} cannot be {what}: {_first_line(error)} ({self._free_space()}). "
                "Those that were complete are as they were."
            ) from error

    def _free_space(self):
        try:
            return f"{shutil.disk_usage(self._folder).free / 2**20:,.0f} MiB free"
        except OSError as error:
            return error.strerror


class _LatestAndBest:
    """Which checkpoints to keep: Orbax's policy protocol."""

    def __init__(self, latest, rank):
        self._latest = latest
        self._rank = rank

    def should_preserve(self, checkpoints, *, context):
        steps = sorted(info.step for info in checkpoints)
        kept = {*steps[-self._latest :], *sorted(steps, key=self._rank)[-1:]}
        return [info.step in kept for info in checkpoints]


@jax.jit
def _digests(leaves):
    return jax.tree.map(digest, leaves)


@jax.jit
def _copied(leaves):
    """Copies, since the next step uses the state's buffers up while they are being written, and digests."""
    return jax.tree.map(jnp.copy, leaves), _digests(leaves)


def _describe(leaf):
    return {"shape": list(leaf.shape), "dtype": leaf.dtype.name}


def _abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


@contextlib.contextmanager
def _damage_of(step):
    try:
        with quiet():
            yield
    except Exception as error:  # of Orbax, TensorStore, JSON and the file system
        raise DamagedCheckpointError(_first_line(error)) from error


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
