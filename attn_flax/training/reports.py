"""Callbacks that tell of a run: on the terminal, in a file of JSON lines, in TensorBoard's event files."""

import dataclasses
import json
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from attn_flax.training.loop import Callback, Plan, Report, Tally
from attn_flax.training.step import TrainState


class MetricsFile(Callback):
    """Appends every report to a file, one JSON object a line."""

    def __init__(self, path: Path):
        self._file = path.open("a")

    def on_report(self, report: Report, state: TrainState) -> None:
        """Writes the report at once, so that a run that breaks off leaves its metrics behind."""
        record = dataclasses.asdict(report)
        print(json.dumps(record | record.pop("metrics")), file=self._file, flush=True)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class EventFiles(Callback):
    """Writes every metric as a scalar `split/name` for TensorBoard.

    Args:
        folder: where to.
        first_step: TensorBoard forgets what earlier files in the folder say of this step and the later ones.
    """

    def __init__(self, folder: Path, *, first_step: int = 0):
        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def on_report(self, report: Report, state: TrainState) -> None:
        """Adds the report's scalars at its step."""
        for name, value in report.metrics.items():
            self._writer.add_scalar(f"{report.split}/{name}", value, report.step)
        if report.split == "train":
            self._writer.add_scalar("train/examples_per_second", report.examples_per_second, report.step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._writer.close()


class ProgressBar(Callback):
    """A live bar on a terminal; elsewhere a plain line at the end of every epoch, and in long ones every 10 s."""

    SECONDS_BETWEEN_LINES = 10.0

    def __init__(self, plan: Plan, console: Console | None = None):
        self._plan = plan
        self._console = console or Console()
        self._latest: dict[str, Report] = {}
        self._unprinted: Report | None = None
        self._first: int | None = None
        self._start = self._last_line = time.monotonic()
        self._bar = self._live_bar() if self._console.is_terminal else None

    def on_step(self, step: int, state: TrainState, tally: Tally) -> None:
        """Notes where this process began."""
        if self._first is None:
            self._first = step - 1

    def on_report(self, report: Report, state: TrainState) -> None:
        """Shows the latest metrics of both splits."""
        if self._unprinted and report.step > self._unprinted.step and self._plan.ends_epoch(self._unprinted.step):
            self._print_line()  # nothing was validated at that epoch's end
        self._latest[report.split] = report
        if self._bar:
            epoch, rate, *splits = self._texts(report)
            text = "\n".join([f"{epoch}  {rate}", *splits])  # in one line a narrow terminal would cut it off
            self._bar.update(self._bar.task_ids[0], completed=report.step, text=text)
            return
        self._unprinted = report
        if report.split == "validation" or (self._is_due() and not self._plan.ends_epoch(report.step)):
            self._print_line()

    def close(self) -> None:
        """Leaves the bar as it is, or the latest report on a last line."""
        if self._bar:
            self._bar.stop()
        elif self._unprinted:
            self._print_line()

    def _live_bar(self):
        bar = Progress(
            BarColumn(bar_width=20), TextColumn("{task.fields[text]}"), TimeRemainingColumn(), console=self._console
        )
        bar.add_task("", total=self._plan.steps, text="compiling …")
        bar.start()
        return bar

    def _is_due(self):
        return time.monotonic() - self._last_line >= self.SECONDS_BETWEEN_LINES

    def _print_line(self):
        epoch, rate, *splits = self._texts(self._unprinted)
        line = "  ".join([epoch, *splits, rate, f"ETA {self._eta(self._unprinted.step)}"])
        self._console.print(line, highlight=False, soft_wrap=True)
        self._unprinted, self._last_line = None, time.monotonic()

    def _texts(self, report):
        splits = [
            f"{split} " + " ".join(f"{name} {value:.4f}" for name, value in sorted(latest.metrics.items()))
            for split, latest in self._latest.items()
        ]
        epoch = min(report.epoch, self._plan.epochs)  # steps are rounded up
        return [f"epoch {epoch:.1f}/{self._plan.epochs}", f"{report.examples_per_second:,.0f} images/s", *splits]

    def _eta(self, step):
        first = self._first or 0
        seconds = (time.monotonic() - self._start) * (self._plan.steps - step) / (step - first)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
