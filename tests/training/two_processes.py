"""One of two processes on loopback: trains a network, saves it, and prints the losses.

two_processes.py HOW FSDP DTYPE FOLDER PORT PROCESS
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax
import numpy as np

from attn_flax.training import Checkpoints, parallelize
from tests.training.test_parallel import BATCH, STEPS, random_batches, wide_task


def main(how, fsdp, dtype, folder, port, process):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10)
    task = wide_task(dtype)
    runner = parallelize(task, how, fsdp=fsdp)
    state, half = runner.place(task.init(jax.random.key(3))), BATCH // 2
    for batch in random_batches(STEPS, BATCH, dtype=dtype):
        part = jax.tree.map(lambda x: x[process * half : (process + 1) * half], batch)
        state, metrics = runner.update(state, runner.put(part))
        print("loss", float(runner.fetch(metrics)["loss"]), "", flush=True)
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, runner.portable(state))
    checkpoints.close()
    back = runner.fetch(runner.place(checkpoints.restore(runner.portable(state)).state))
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(runner.fetch(state).params), strict=True):
        np.testing.assert_array_equal(a, b)


if __name__ == "__main__":
    from pathlib import Path

    how, fsdp, dtype, folder, port, process = sys.argv[1:]
    with jax.enable_x64(dtype == "float64"):
        main(how, int(fsdp) or None, dtype, Path(folder), port, int(process))
