import importlib.util
import subprocess
import sys

import pytest

from attn_flax.runs.memory import ACCELERATORS

PAGES_TOUCHED_AGAIN = """
import resource, sys, threading
from attn_flax import runs

def in_a_thread():
    thread = threading.Thread(target=lambda: b"1" * 2**26)
    thread.start()
    thread.join()

if sys.argv[1] == "kept":
    runs.keep_freed_memory()
in_a_thread()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_a_thread()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or any(map(importlib.util.find_spec, ACCELERATORS)), reason="of glibc, without accelerators"
)
def test_freed_memory_is_not_mapped_anew():
    """64 MiB are 16,384 pages: all are new to a thread that allocates them again, or nearly none."""
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", PAGES_TOUCHED_AGAIN, how], capture_output=True, check=True).stdout
        )
        for how in ("given back", "kept")
    }
    assert faults["given back"] > 16_000
    assert faults["kept"] < 200
