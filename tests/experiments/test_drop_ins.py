"""Every drop-in mechanism in one network: what it learns, and what is refused."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from attn_flax.checks import InputError, UnknownNameError
from experiments.drop_ins import main, parse


@pytest.mark.full
def test_each_is_trained_or_says_why_not(tmp_path):
    out, shown = tmp_path / "drop_ins.json", io.StringIO()
    results = main(
        parse(["dilated_neighborhood", "se", "--steps", "40", "--out", str(out)]), Console(file=shown, width=200)
    )
    losses = results["se"]["losses"]
    assert len(losses) == 40
    assert results["se"]["first"] == losses[0]
    assert results["se"]["last"] == pytest.approx(np.mean(losses[-20:]))
    assert results["se"]["last"] < 0.6 * losses[0]
    assert "at least (14, 14) positions" in results["dilated_neighborhood"]["refused"]  # those of the digits are 8×8
    assert json.loads(out.read_text())["results"] == results
    rows = [line.split(" | ") for line in shown.getvalue().splitlines()[2:]]
    assert [row[0] for row in rows] == ["| dilated_neighborhood", "| se"]
    assert rows[0][1].startswith("refused: the map must be of at least (14, 14) positions")
    assert rows[1][1] == f"{losses[0]:.3f}"


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="steps must be at least 20, got 19"):
        main(parse(["--steps", "19"]))
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):  # and no row of a table
        main(parse(["se", "--batch-size", "0"]))
    with pytest.raises(UnknownNameError, match="unknown drop-in attention 'spn'"):
        main(parse(["spn"]))
