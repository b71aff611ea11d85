"""One training, from its folder to its best state, whatever happens in between."""

import contextlib
import sys
from collections.abc import Iterator

import jax
from rich.console import Console

from attn_flax import training
from attn_flax.checks import InputError, check
from attn_flax.runs.build import TaskData
from attn_flax.runs.config import TrainingConfig
from attn_flax.runs.folder import RunFolder, as_json
from attn_flax.runs.processes import Peers, is_first, teller


def check_training(config: TrainingConfig) -> None:
    """Raises InputError for values that would only be refused when the run has begun."""
    checkpoint = config.checkpoint
    check(0 <= config.seed < 2**32, f"seed must be in [0, 2³²), got {config.seed}.")
    check(config.hung_after > 0, f"hung_after must be positive, got {config.hung_after}.")
    check(checkpoint.keep >= 1, f"checkpoint.keep must be at least 1, got {checkpoint.keep}.")
    for name in ("every_steps", "every_minutes"):
        value = getattr(checkpoint, name)
        check(value is None or value > 0, f"checkpoint.{name} must be positive or None, got {value}.")


def is_finished(config: TrainingConfig) -> bool:
    """Whether the run to go on with has its result, for as many epochs."""
    if not (config.resume and config.run and (config.run / "result.json").exists()):
        return False
    return RunFolder(config.run).read_json("result.json")["epochs"] >= config.epochs


def has_checkpoint(config: TrainingConfig) -> bool:
    """Whether the run to go on with has anything to go on from."""
    if not (config.resume and config.run and RunFolder(config.run).checkpoints.is_dir()):
        return False
    return bool(training.Checkpoints(RunFolder(config.run).checkpoints, read_only=True).steps)


def train(
    config: TrainingConfig,
    task: training.Task,
    runner: training.Runner,
    data: TaskData,
    plan: training.Plan,
    folder: RunFolder,
    console: Console,
) -> tuple[int, training.TrainState]:
    """The step and the state that are best on the validation split, or the last where there is none.

    Goes on from the latest checkpoint in the folder, if there is one, with the batch that comes next.

    Raises:
        StoppedError: by a signal.
        InputError: a fault that its user can cure; what was trained is saved if it is worth it.
    """
    tell = teller(console)
    checkpoints = training.Checkpoints(
        folder.checkpoints, keep=config.checkpoint.keep, config=as_json(config), tell=tell
    )
    state, past = runner.place(task.init(jax.random.key(config.seed))), ()
    if checkpoints.steps:
        restored = checkpoints.restore(runner.portable(state))
        checkpoints.forget_after(restored.step)
        state, past = runner.place(restored.state), restored.past
        tell(f"going on after step {restored.step} of {plan.steps}.")
    step = int(runner.fetch(state.step))
    folder.rewind_metrics(step)
    with (
        training.StopRequest() as stop,
        contextlib.closing(data.train_batches(seed=config.seed, start=step)) as batches,
    ):
        validates = data.dataset.validation is not None
        saver = training.Saver(
            checkpoints,
            runner,
            plan,
            score=task.score if validates else None,
            stop=stop,
            every_steps=config.checkpoint.every_steps,
            every_minutes=config.checkpoint.every_minutes,
        )
        watchdog = training.Watchdog(60 * config.hung_after, folder.path / "hung.txt", tell)

        def validate(state):
            split = saver.watch(watchdog.watch(data.evaluation_batches("validation")))
            return task.summarize(training.evaluate(runner, state, split))

        state = training.fit(
            runner,
            state,
            batches,
            plan,
            validate=validate if validates else None,
            callbacks=[Peers(resume_hint(folder)), saver, watchdog, *_reports(config, plan, folder, step, console)],
            past=past,
        )
    best = checkpoints.restore(runner.portable(state), best=True)
    return best.step, runner.place(best.state)


@contextlib.contextmanager
def resumable(folder: RunFolder) -> Iterator[None]:
    """Says in every error and interruption how to go on."""
    try:
        yield
    except (InputError, OSError, KeyboardInterrupt, training.StoppedError) as error:
        error.__notes__ = [resume_hint(folder)]  # of the outermost run, whose part another may be
        raise


def resume_hint(folder: RunFolder) -> str:
    """How to go on with a run."""
    spec = sys.modules["__main__"].__spec__
    program = f"python -m {spec.name}" if spec else "the same program"
    return f"Go on with:  {program} --run {folder.path} --resume"


def _reports(config, plan, folder, step, console):
    if not is_first():
        return []
    reports = [
        training.ProgressBar(plan, console),
        training.MetricsFile(folder.path / "metrics.jsonl"),
        training.EventFiles(folder.path, first_step=step),
    ]
    return [*reports, training.Profile(folder.path / "profile")] if config.profile else reports
