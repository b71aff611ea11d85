"""The losses of a real run do not depend on its layout."""

import io
import json

import pytest
from rich.console import Console

from experiments import layouts


@pytest.mark.full
def test_two_processes_have_the_losses_of_one_device(tmp_path, monkeypatch):
    spread = layouts.Layout("fsdp", devices=4, fsdp=2, processes=2)
    monkeypatch.setattr(layouts, "LAYOUTS", (layouts.Layout(devices=1), spread))
    console = Console(file=io.StringIO(), width=200)
    result = layouts.main(layouts.Config(out=tmp_path / "out.json"), console)
    single, both = result["losses"].values()
    assert len(single) == len(both) == 21
    assert single[0] > single[-1] > 0
    assert (
        max(abs(a - b) for a, b in zip(single, both, strict=True)) == result["largest_difference"][str(spread)] < 1e-5
    )
    assert json.loads((tmp_path / "out.json").read_text()) == result
    _, _, first, second = console.file.getvalue().splitlines()
    assert first.startswith("| jit, 1 device |")
    assert second.startswith("| fsdp, 2 × 2, 4 devices of 2 processes |")
