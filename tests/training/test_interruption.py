"""Signals become requests; the second ends the process at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from attn_flax.training import StopRequest
from attn_flax.training.interruption import Agreement

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_the_second_ends_the_process_at_once(first, second):
    script = (
        "import os, time\nfrom attn_flax.training import StopRequest\nwith StopRequest():\n"
        f"    os.kill(os.getpid(), {first})\n    os.kill(os.getpid(), {second})\n    time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 128 + second
    assert "Traceback" not in done.stderr


def test_one_process_agrees_with_itself():
    assert [Agreement().ask(True, False), Agreement().ask(False, False)] == [(True, False), (False, False)]
