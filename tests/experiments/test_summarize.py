"""Tables of runs, from figures known beforehand."""

import json

import pytest

from attn_flax.checks import InputError
from experiments.summarize import Config, main


def write_run(folder, attention, seed, accuracy, seconds=10.0):
    folder.mkdir()
    config = {
        "preset": "article",
        "data": {"name": "digits", "folder": None},
        "model": {"name": "attention_net", "attention": attention, "arguments": []},
        "epochs": 5,
        "seed": seed,
        "run": str(folder),
    }
    result = {
        "test": {"accuracy": accuracy, "mean_iou": accuracy / 2, "loss": 0.1},
        "parameters": 1234,
        "seed": seed,
        "wall_seconds": seconds,
        "versions": {"jax": "0.12", "python": "3.12"},
        "device": {"kind": "cpu", "count": 1, "cpu_cores": 2},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_seeds_make_a_row_and_attentions_a_pair(tmp_path):
    with_gate, without = (0.97, 0.98, 0.96), (0.95, 0.95, 0.95)
    folders = [write_run(tmp_path / f"gate{s}", "article_gate", s, a, 10.0 + s) for s, a in enumerate(with_gate)]
    folders += [write_run(tmp_path / f"none{s}", "none", s, a) for s, a in enumerate(without)]
    table = main(Config(tuple(folders)))
    metrics = "accuracy 0.9700 (0.9600–0.9800), mean iou 0.4850 (0.4800–0.4900)"
    assert f"5 epochs, attention_net, attention article_gate | 0, 1, 2 | {metrics} | 1,234 | 11 s |" in table
    assert "attention none | 0, 1, 2 | accuracy 0.9500 (0.9500–0.9500), mean iou" in table
    assert (
        "attention article_gate minus attention_net, attention none; digits, article recipe, 3 paired seeds:" in table
    )
    # differences 0.02, 0.03, 0.01: mean 0.02, standard error 0.01/√3, t = 4.3027
    assert "- accuracy +0.0200 (95 % interval -0.0048 to +0.0448)" in table
    assert "- mean iou +0.0100 (95 % interval -0.0024 to +0.0224)" in table


def test_a_folder_without_result_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected config.json and result.json in it, got No such file.*config.json"):
        main(Config((tmp_path,)))
