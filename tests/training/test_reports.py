"""What a run tells: lines of JSON, TensorBoard's events, the terminal."""

import io
import json
import re
import struct

import jax
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from attn_flax.training import EventFiles, MetricsFile, Plan, ProgressBar, Report
from tests.training.toys import Mean

PLAN = Plan(examples=40, batch_size=4, epochs=3, report_every=4)
REPORTS = [
    Report(4, 0.4, "train", {"loss": 2.25, "accuracy": 0.125}, 1234.5),
    Report(10, 1.0, "train", {"loss": 1.5, "accuracy": 0.5}, 2345.5),
    Report(10, 1.0, "validation", {"loss": 1.75, "accuracy": 0.375}, 2345.5),
    Report(15, 1.5, "train", {"loss": 1.25, "accuracy": 0.625}, 3456.5),
]


@pytest.fixture(scope="module")
def state():
    return Mean().init(jax.random.key(0))


@pytest.fixture
def seconds(monkeypatch):
    """A clock that goes on by the second that is written into it."""
    clock = [0.0]
    monkeypatch.setattr("attn_flax.training.reports.time.monotonic", lambda: clock[0])
    return clock


def told(callback, reports, state):
    for report in reports:
        callback.on_report(report, state)


def printed(reports, state, *, close=True):
    console = Console(file=io.StringIO(), width=200)
    bar = ProgressBar(PLAN, console)
    told(bar, reports, state)
    if close:
        bar.close()
    return console.file.getvalue().splitlines()


def read_events(path):
    """The events of a file of records: length, its checksum, data, its checksum."""
    data = io.BytesIO(path.read_bytes())
    while header := data.read(12):
        (length,) = struct.unpack("<Q", header[:8])
        yield Event.FromString(data.read(length))
        data.read(4)


def test_a_metrics_file_has_a_line_for_each_report(tmp_path, state):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    told(file, REPORTS, state)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "step": report.step,
            "epoch": report.epoch,
            "split": report.split,
            "examples_per_second": report.examples_per_second,
            **report.metrics,
        }
        for report in REPORTS
    ]
    file.close()


def test_a_metrics_file_is_continued(tmp_path, state):
    for report in REPORTS:
        file = MetricsFile(tmp_path / "metrics.jsonl")
        file.on_report(report, state)
        file.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 10, 10, 15]


def test_event_files_hold_the_scalars(tmp_path, state):
    files = EventFiles(tmp_path)
    told(files, REPORTS, state)
    files.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    scalars = [
        (event.step, value.tag, value.simple_value) for event in read_events(path) for value in event.summary.value
    ]
    expected = [(r.step, f"{r.split}/{name}", value) for r in REPORTS for name, value in r.metrics.items()]
    expected += [(r.step, "train/examples_per_second", r.examples_per_second) for r in REPORTS if r.split == "train"]
    assert sorted(scalars) == sorted(expected)


def test_off_a_terminal_every_epoch_is_a_line(state, seconds):
    validation = "validation accuracy 0.3750 loss 1.7500"
    assert printed(REPORTS, state) == [
        f"epoch 1.0/3  train accuracy 0.5000 loss 1.5000  {validation}  2,346 images/s  ETA 0:00",
        f"epoch 1.5/3  train accuracy 0.6250 loss 1.2500  {validation}  3,456 images/s  ETA 0:00",
    ]


def test_without_validation_every_epoch_is_a_line(state, seconds):
    reports = [Report(step, step / 10, "train", {"loss": 1 / step}, 10.0) for step in (4, 8, 10, 12, 16, 20)]
    lines = printed(reports, state)
    assert [line.split("  ")[:2] for line in lines] == [
        ["epoch 1.0/3", "train loss 0.1000"],
        ["epoch 2.0/3", "train loss 0.0500"],
    ]


def test_a_long_epoch_is_told_of_every_ten_seconds(state, seconds):
    console = Console(file=io.StringIO(), width=200)
    bar = ProgressBar(PLAN, console)
    for step in range(1, 9):
        seconds[0] = 4.0 * step
        bar.on_report(Report(step, step / 10, "train", {"loss": 1 / step}, 10.0), state)
    lines = console.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 0.3/3", "epoch 0.6/3"]
    assert [line.split("  ")[-1] for line in lines] == ["ETA 1:48", "ETA 1:36"]  # 27 and 24 steps of 4 s


def test_nothing_is_told_twice(state, seconds):
    lines = printed(REPORTS[:3], state)
    assert len(lines) == 1


def test_a_run_that_tells_nothing_prints_nothing(state):
    assert printed([], state) == []


def test_on_a_terminal_there_is_one_bar(state):
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    bar = ProgressBar(PLAN, console)
    told(bar, REPORTS, state)
    bar.close()
    first, second, third, *_ = last_frame = console.file.getvalue().rsplit("\r", 1)[-1].splitlines()
    assert "━━━━━━━━━━" in first
    assert "epoch 1.5/3  3,456 images/s" in first
    assert re.search(r"\d:\d\d:\d\d", first)
    assert second.strip() == "train accuracy 0.6250 loss 1.2500"
    assert third.strip() == "validation accuracy 0.3750 loss 1.7500"
    assert "\x1b[?25h" in last_frame[-1]  # the cursor is back
