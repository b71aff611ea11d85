"""What a run goes on from: its folder, its options, its metrics."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from attn_flax import runs
from attn_flax.checks import InputError
from experiments.classification import PRESETS, Config


def folder_of(path, **changes):
    folder = runs.RunFolder.create(path, name="digits")
    folder.write_json("config.json", dataclasses.replace(PRESETS["article"], **changes))
    return folder


def test_a_configuration_comes_back_as_it_was(tmp_path):
    data = runs.DataConfig(dir=Path("sets"), size=(7, 5), mean=(0.5,), max_bad=3)
    folder = folder_of(tmp_path / "run", data=data, epochs=7, fsdp_devices=4)
    assert folder.read_config(Config) == dataclasses.replace(PRESETS["article"], data=data, epochs=7, fsdp_devices=4)
    assert folder.read_config(runs.DataConfig, section="data") == data


def test_a_resumed_run_has_its_options_but_for_those_given(tmp_path):
    distributed = runs.DistributedConfig(coordinator="host:1", num_processes=2, process_id=0)
    folder_of(tmp_path / "run", epochs=7, seed=3, distributed=distributed)
    config = runs.parse(PRESETS, ["--run", str(tmp_path / "run"), "--resume", "--data.workers", "2"])
    assert (config.preset, config.epochs, config.seed, config.data.workers) == ("article", 7, 3, 2)
    assert config.distributed == runs.DistributedConfig()
    fresh = runs.parse(PRESETS, ["--run", str(tmp_path / "other"), "--resume"])
    assert fresh == dataclasses.replace(PRESETS["default"], run=tmp_path / "other", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content | {"epoch": 3}, "epoch"),
        (lambda content: content | {"epochs": "many"}, "epochs"),
        (lambda content: {**content, "data": content["data"] | {"names": 1}}, "names"),
    ],
)
def test_a_configuration_of_something_else_is_refused(tmp_path, change, message):
    folder = folder_of(tmp_path / "run")
    folder.write_json("config.json", change(folder.read_json("config.json")))
    with pytest.raises(InputError, match=rf"is not the configuration expected here: .*{message}"):
        folder.read_config(Config)


def test_a_folder_is_gone_on_with_or_made(tmp_path):
    made = runs.RunFolder.open(tmp_path / "run", name="digits", resume=True)
    assert made.path.is_dir()
    (made.path / ".config.json.new").write_text("{")  # a run that was killed while it began
    assert runs.RunFolder.open(tmp_path / "run", name="digits", resume=True) == made
    with pytest.raises(InputError, match="exists already: go on with it by --resume"):
        runs.RunFolder.open(tmp_path / "run", name="digits", resume=False)
    with pytest.raises(InputError, match="--resume needs the folder to go on in: expected --run RUN"):
        runs.RunFolder.open(None, name="digits", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match=r"is no folder of a run: expected config\.json in it"):
        runs.RunFolder.open(tmp_path / "other", name="digits", resume=True)


def test_metrics_are_rewound_and_an_unfinished_line_dropped(tmp_path):
    folder = folder_of(tmp_path / "run")
    records = [{"step": step, "split": split} for step in (4, 8, 12) for split in ("train", "validation")]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder.path / "metrics.jsonl").write_text(lines + '{"step": 16, "spl')
    assert folder.read_metrics() == records
    folder.rewind_metrics(8)
    assert folder.read_metrics() == records[:2]
    assert (folder.path / "metrics.jsonl").read_text() == "".join(lines.splitlines(keepends=True)[:2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coordinator": "host:1"}, "got no num_processes"),
        ({"num_processes": 2, "process_id": 0}, "got no coordinator"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "must be HOST:PORT, got 'host'"),
        ({"coordinator": "host:1", "num_processes": 2, "process_id": 2}, r"process_id must be in \[0, 2\), got 2"),
        ({"coordinator": "host:1", "num_processes": 0, "process_id": 0}, "num_processes must be at least 1, got 0"),
    ],
)
def test_settings_of_processes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        runs.connect(runs.DistributedConfig(**settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, r"seed must be in \[0, 2³²\), got -1"),
        ({"hung_after": 0.0}, "hung_after must be positive"),
        ({"checkpoint": runs.CheckpointConfig(keep=0)}, "checkpoint.keep must be at least 1, got 0"),
        ({"checkpoint": runs.CheckpointConfig(every_steps=0)}, "checkpoint.every_steps must be positive or None"),
        ({"checkpoint": runs.CheckpointConfig(every_minutes=-1.0)}, "checkpoint.every_minutes must be positive"),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        runs.check_training(dataclasses.replace(PRESETS["default"], **changes))


def test_compiled_programs_are_kept_where_the_environment_says(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        runs.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == before
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        runs.keep_compiled_programs()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "attn_flax" / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
