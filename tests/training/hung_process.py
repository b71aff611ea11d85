"""One of two processes that share each step, of which the second comes late to its third.

hung_process.py FOLDER PORT PROCESS
"""

import os
import sys
import time
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import jax

from attn_flax.training import Tally, Watchdog, parallelize
from tests.training.networks import random_batches
from tests.training.test_parallel import BATCH, wide_task

PATIENCE, LATE = 2, 5


def main(folder, port, process):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    task = wide_task("float32")
    runner = parallelize(task, "jit")
    state, half = runner.place(task.init(jax.random.key(3))), BATCH // 2
    parts = [jax.tree.map(lambda x: x[process * half :][:half], batch) for batch in random_batches(4, BATCH)]
    state, metrics = runner.update(state, runner.put(parts[0]))
    jax.block_until_ready(state)
    watchdog = Watchdog(PATIENCE, folder / f"hung-{process}.txt", lambda message: print(message, flush=True))
    for step, part in enumerate(parts[1:], 2):
        if process == 1 and step == 3:
            time.sleep(LATE)
        state, metrics = runner.update(state, runner.put(part))
        watchdog.on_step(step, state, Tally(runner, state))
        jax.block_until_ready(metrics)
    watchdog.close()


if __name__ == "__main__":
    folder, port, process = sys.argv[1:]
    main(Path(folder), int(port), int(process))
