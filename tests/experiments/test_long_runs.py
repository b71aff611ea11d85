"""The classification as a process that is stopped, killed, starved of disk space, and gone on with."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from attn_flax.training import Checkpoints
from experiments import chaos
from tests.pictures import write_image_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_image_folder(
        tmp_path_factory.mktemp("images"), classes=("blue", "green", "red"), count=24, size=(9, 7)
    )


def start(folder, run, *options, devices=1, prefix=()):
    few = ["--data.folder", folder, "--run", run, "--epochs", "400", "--batch-size", "8", "--report-every", "1"]
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "experiments.classification", *map(str, few), *map(str, options)],
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, *processes, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def has_reported(run):
    path = run / "metrics.jsonl"
    return lambda: path.exists() and path.read_text().count("\n") > 3


def latest_step(run):
    return max((int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()), default=0)


def end(process, number, to_all=False):
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    shown, complaints = process.communicate(timeout=60)
    for _ in range(100):
        if not (left := chaos.processes_of(process.pid)):
            break
        time.sleep(0.05)
    assert left == []
    return shown, complaints


@pytest.mark.parametrize(
    ("number", "workers"), [pytest.param(signal.SIGTERM, 0, marks=pytest.mark.full), (signal.SIGINT, 2)]
)
def test_a_stopped_run_saves_and_says_how_to_go_on(folder, tmp_path, number, workers):
    run = tmp_path / "run"
    process = start(folder, run, "--data.workers", workers)
    wait_for(has_reported(run), process)
    _, complaints = end(process, number, to_all=number == signal.SIGINT)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}." in complaints
    assert re.search(rf"python -m experiments\.classification --run {run} --resume", complaints)
    assert "Traceback" not in complaints
    step = latest_step(run)
    assert step > 0
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]["step"]
    assert step - last in (0, 1)
    again = start(folder, run, "--resume")
    wait_for(lambda: latest_step(run) > step or not has_reported(run)() or _last(run) > step + 2, again)
    shown, _ = end(again, signal.SIGTERM)
    assert f"going on after step {step} of" in shown


def _last(run):
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    return json.loads(lines[-1])["step"] if lines else 0


def test_a_second_ctrl_c_exits_at_once(folder, tmp_path):
    run = tmp_path / "run"
    process = start(folder, run, "--data.workers", "2")
    wait_for(has_reported(run), process)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    begun = time.monotonic()
    end(process, signal.SIGCONT)
    assert time.monotonic() - begun < 8
    assert process.returncode == 130


def test_a_finished_run_says_so_and_does_nothing(folder, tmp_path):
    run = tmp_path / "run"
    shown, complaints = start(folder, run, "--epochs", "1").communicate(timeout=120)
    assert (run / "result.json").exists(), complaints
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    shown, _ = start(folder, run, "--epochs", "1", "--resume").communicate(timeout=120)
    assert "is finished: there is nothing left to do" in shown
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.full
def test_a_full_disk_is_one_screen_and_keeps_what_was_complete(folder, tmp_path):
    """A limit on the size of files stands for the disk's."""
    run = tmp_path / "run"
    options = ["--checkpoint.every-steps", "3"]
    process = start(folder, run, *options)
    wait_for(lambda: (run / "checkpoints").exists() and latest_step(run) > 0, process)
    end(process, signal.SIGTERM)
    step = latest_step(run)
    limited = start(folder, run, *options, "--resume", prefix=("bash", "-c", 'ulimit -f 4096; exec "$@"', "bash"))
    _, complaints = limited.communicate(timeout=120)
    assert limited.returncode == 2
    assert "cannot be written" in complaints
    assert "Go on with:" in complaints
    assert "Traceback" not in complaints
    assert len(complaints.splitlines()) < 24
    assert latest_step(run) == step
    assert Checkpoints(run / "checkpoints").read()[0] == step
    again = start(folder, run, *options, "--resume")
    wait_for(lambda: latest_step(run) > step, again)
    shown, _ = end(again, signal.SIGTERM)
    assert f"going on after step {step} of" in shown


def test_a_checkpoint_of_another_network_is_refused(folder, tmp_path):
    run = tmp_path / "run"
    process = start(folder, run)
    wait_for(has_reported(run), process)
    end(process, signal.SIGTERM)
    _, complaints = start(folder, run, "--resume", "--model.attention", "none").communicate(timeout=120)
    assert "ArchitectureError" in complaints
    assert "expected nothing, got float32" in complaints
    assert "Traceback" not in complaints


def test_a_vanished_folder_is_one_screen(folder, tmp_path):
    run = tmp_path / "run"
    process = start(folder, run, "--checkpoint.every-steps", "5")
    wait_for(has_reported(run), process)
    run.rename(tmp_path / "elsewhere")
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "vanished" in complaints
    assert "Traceback" not in complaints


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_survivor_soon_with_a_state_to_go_on_from(folder, tmp_path, victim):
    run = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ["--distributed.coordinator", address, "--distributed.num-processes", "2", "--checkpoint.every-steps", 4]
    processes = [start(folder, run, *together, "--distributed.process-id", i, devices=2) for i in range(2)]
    with contextlib.ExitStack() as stack:
        for process in processes:
            stack.callback(process.kill)
        wait_for(lambda: (run / "checkpoints").exists() and latest_step(run) > 0, *processes)
        processes[victim].kill()
        survivor, begun = processes[1 - victim], time.monotonic()
        _, complaints = survivor.communicate(timeout=30)
        assert time.monotonic() - begun < 30
        assert survivor.returncode not in (0, None)
        assert f"if one is lost, all end. Go on with:  python -m experiments.classification --run {run}" in complaints
        assert re.search("perhaps because another one was lost|indicates that another task died", complaints)
        processes[victim].communicate()
    step = latest_step(run)
    again = start(folder, run, "--resume", "--epochs", "1", devices=1)
    shown, complaints = again.communicate(timeout=120)
    assert again.returncode == 0, complaints
    assert re.search(r"going on after step (\d+) of", shown)[1] == str(step)


@pytest.mark.full
def test_a_small_campaign_of_kills(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    result = chaos.main(chaos.Config(kills=3, seed=5, epochs=2, workers=2, folder=tmp_path))
    assert sum(result["kills"].values()) == 3
    assert result["runs"] >= 1


def test_a_difference_is_noticed(tmp_path):
    expected = {"step": 1, "best": 1, "test": {}, "metrics": [], "leaves": {"a": np.ones(3, np.float32)}}
    other = expected | {"leaves": {"a": np.nextafter(np.ones(3, np.float32), 2, dtype=np.float32)}}
    chaos.compare(expected, expected)
    with pytest.raises(chaos.DifferenceError, match="a differs"):
        chaos.compare(other, expected)
