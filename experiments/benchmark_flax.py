"""The side of `experiments.benchmark` that is ours.

Told to, it trains an epoch and answers how many seconds it took.
"""

import contextlib
import json
import platform
import sys
import time

import jax
from flax import nnx

from attn_flax import data, training
from attn_flax.models import create_model
from attn_flax.tasks import Classification
from attn_flax.version import __version__


def main(batch_size: int) -> None:
    """Answers every line of the standard input."""
    train = data.load_dataset("digits").train
    mean, std = data.channel_statistics(train, 3)
    model = create_model("attention_net", num_classes=10, rngs=nnx.Rngs(0))
    task = Classification(model, training.Learning(training.create_optimizer("adam", 1e-3)), num_classes=10)
    runner = training.parallelize(task, devices=jax.devices()[:1])
    state = runner.place(task.init(jax.random.key(0)))
    batches = data.train_batches(
        train, batch_size=batch_size, seed=0, shape=(8, 8, 3), mean=mean, std=std, num_classes=10
    )
    images = len(train) // batch_size * batch_size
    with contextlib.closing(batches):
        answer({"attn_flax": __version__, "jax": jax.__version__, "python": platform.python_version()})
        for epoch, _ in enumerate(sys.stdin, 1):
            start = time.perf_counter()
            state = training.fit(runner, state, batches, training.Plan(images, batch_size, epoch))
            jax.block_until_ready(state)
            answer(time.perf_counter() - start)


def answer(value):
    """A line of JSON."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[-1]))
