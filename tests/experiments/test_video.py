"""The video experiment on a few videos: what it leaves behind, and what its run makes of other videos."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from attn_flax import runs
from attn_flax.data.embedded import videos
from attn_flax.data.embedded.digits import split_scans_in_three
from experiments import predict
from experiments.video import PRESETS, main

SMALL = ["embed_dim=8", "num_heads=2", "depth=1", "patch_size=8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder, what it returned and what it printed."""
    folder, out = tmp_path_factory.mktemp("videos"), io.StringIO()
    few = ["--data.dir", str(folder), "--data.frames", "3", "--data.stride", "5", "--batch-size", "8", "--epochs", "2"]
    arguments = ["--run", str(folder / "run"), "--model.arguments", *SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(videos, "COUNTS", {"train": 24, "validation": 8, "test": 12})
        result = main(runs.parse(PRESETS, [*few, *arguments]), Console(file=out, width=200))
    return folder / "run", result, out.getvalue()


@pytest.mark.full
def test_a_run_leaves_everything_behind(trained):
    run, result, shown = trained
    assert set(result["test"]) == {"loss", "digit_accuracy", "direction_accuracy"}
    assert result == json.loads((run / "result.json").read_text())
    assert json.loads((run / "classes.json").read_text())["direction"][:2] == ["right", "down right"]
    assert f"direction_accuracy {result['test']['direction_accuracy']:.4f}" in shown
    for picture in run.glob("*.png"):
        assert np.asarray(Image.open(picture).convert("L")).std() > 10


@pytest.mark.full
def test_a_run_predicts_files_and_folders_of_frames(trained, tmp_path):
    run, _, _ = trained
    images, _ = split_scans_in_three()["test"]
    first, *others = map(Image.fromarray, videos.make_video(np.random.default_rng(0), images[0], (1, 0)))
    first.save(tmp_path / "seven.gif", save_all=True, append_images=others)
    (tmp_path / "frames").mkdir()
    for index, frame in enumerate((first, *others)):
        frame.save(tmp_path / "frames" / f"{index:02}.png")
    names, out = (str(tmp_path / "seven.gif"), str(tmp_path / "frames")), io.StringIO()
    predictions = predict.main(predict.Config(run, names, tmp_path / "out"), Console(file=out, width=200))
    of_file, of_folder = (prediction["classes"] for prediction in predictions)
    for name, count in {"digit": 10, "direction": 8}.items():
        probabilities = [probability for _, probability in of_file[name]]
        assert len(probabilities) == count
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert probabilities == sorted(probabilities, reverse=True)
        assert dict(of_file[name]) == pytest.approx(dict(of_folder[name]), abs=0.05)
    for prediction in predictions:
        assert np.asarray(Image.open(prediction["picture"]).convert("L")).std() > 10
    assert f"direction: {of_file['direction'][0][0]} " in out.getvalue()


def test_the_recipe_sees_the_whole_way():
    data = PRESETS["default"].data
    assert (data.frames - 1) * data.stride + 1 in (15, 16)
    assert not data.augment.flip
