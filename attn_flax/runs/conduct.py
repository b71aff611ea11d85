"""One experiment from its configuration to its result, whatever its task."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import PyTree
from rich.console import Console

from attn_flax import training
from attn_flax.data import Kind
from attn_flax.runs.build import TaskData, as_pretrained, build_data, filled_in, without_pretrained
from attn_flax.runs.compilation import keep_compiled_programs
from attn_flax.runs.config import TrainingConfig
from attn_flax.runs.folder import RunFolder, environment
from attn_flax.runs.memory import keep_freed_memory
from attn_flax.runs.processes import connect, is_first, quiet_unless_first, teller
from attn_flax.runs.train import check_training, has_checkpoint, is_finished, resumable, train


@dataclasses.dataclass(frozen=True)
class Trained:
    """What there is to draw in the end.

    Attributes:
        task: what was learned.
        state: the best state, on one device.
        sums: what the task's evaluation gives for the test split.
    """

    task: training.Task
    state: training.TrainState
    sums: PyTree


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one experiment has for itself; the rest of a run is the same for all.

    Attributes:
        kind: of the records that it learns from.
        build_task: (config, data, plan) -> the task.
        draw: (folder, data, trained, console) -> None; makes the run's pictures.
        prepare: (config, task, folder, console) -> the task, after what takes long, such as another training, in the
            folder.
    """

    kind: Kind
    build_task: Callable[[Any, TaskData, training.Plan], training.Task]
    draw: Callable[[RunFolder, TaskData, Trained, Console], None]
    prepare: Callable[[Any, Any, RunFolder, Console], training.Task] | None = None


def conduct(experiment: Experiment, config: TrainingConfig, console: Console | None = None) -> dict[str, Any]:
    """Trains, evaluates and writes the run folder; returns the content of result.json.

    Args:
        experiment: what to do.
        config: how; it has the sections `data` and `model`.
        console: where to tell of the run, by default the terminal.

    Raises:
        InputError: something in the configuration, or a record, is wrong.
        StoppedError: a signal ended the training.
    """
    start = time.perf_counter()
    keep_freed_memory()
    connect(config.distributed)
    keep_compiled_programs()
    console = quiet_unless_first(console)
    check_training(config)
    if is_finished(config):
        console.print(f"{config.run} is finished: there is nothing left to do.", soft_wrap=True)
        return RunFolder(config.run).read_json("result.json")
    begun = _start(config)
    data = build_data(begun.data, kind=experiment.kind, batch_size=config.batch_size, tell=teller(console))
    plan = training.Plan(len(data.dataset.train), config.batch_size, config.epochs, config.report_every)
    task = experiment.build_task(begun, data, plan)
    runner = training.parallelize(task, config.parallel, fsdp=config.fsdp_devices)
    runner.check_batch_size(config.batch_size)

    name = data.dataset.name.replace("/", "-")  # of cmaterdb/bangla
    folder = RunFolder.open(config.run, name=f"{name}-{config.model.name}", resume=config.resume)
    with resumable(folder):
        folder.write_json("classes.json", data.dataset.labellings)
        complete = dataclasses.replace(config, data=data.config)
        folder.write_json("config.json", complete)
        if experiment.prepare:
            task = experiment.prepare(complete, task, folder, console)
            runner = training.parallelize(task, config.parallel, fsdp=config.fsdp_devices)
        step, state = train(config, task, runner, data, plan, folder, console)
        sums = training.evaluate(runner, state, data.evaluation_batches("test"))
        trained = Trained(task, runner.fetch(state), sums)
        result = {
            "test": task.summarize(sums),
            "step": step,
            "epochs": config.epochs,
            "skipped_records": data.bad.count,
            "cleaned_records": data.bad.cleaned,
            "parameters": _count(task.model, (nnx.Param, training.Frozen)),
            "frozen_parameters": _count(task.model, training.Frozen),
            "seed": config.seed,
            "wall_seconds": round(time.perf_counter() - start, 2),
            **environment(),
        }
        if is_first():
            experiment.draw(folder, data, trained, console)
        folder.write_json("result.json", result)
    metrics = " ".join(f"{name} {value:.4f}" for name, value in result["test"].items())
    console.print(f"test {metrics} after step {step} of {plan.steps}\n{folder.path}", highlight=False, soft_wrap=True)
    return result


def _start(config):
    """What a run begins with: data as the pretrained network's, or as the run's that goes on, which needs none."""
    if getattr(config.model, "pretrained", None) is None:
        return config
    if not has_checkpoint(config):
        return dataclasses.replace(config, data=as_pretrained(config.data, config.model))
    earlier = RunFolder(config.run).read_config(type(config.data), section="data")
    return dataclasses.replace(config, data=filled_in(config.data, earlier), model=without_pretrained(config.model))


def _count(model, kinds):
    """How many numbers the variables of these types hold."""
    return sum(variable.size for variable in jax.tree.leaves(nnx.state(model, kinds)))
