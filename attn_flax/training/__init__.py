"""How a task is learned: its state, its step, devices, checkpoints and the loop."""

from attn_flax.training.checkpoints import BestCheckpoint
from attn_flax.training.loop import Callback, Plan, Report, evaluate, fit
from attn_flax.training.network import Network
from attn_flax.training.optimizers import create_optimizer, create_schedule, list_optimizers
from attn_flax.training.parallel import Runner, parallelize
from attn_flax.training.reports import EventFiles, MetricsFile, ProgressBar
from attn_flax.training.step import Learning, TrainState
from attn_flax.training.task import Task

__all__ = [
    "BestCheckpoint",
    "Callback",
    "EventFiles",
    "Learning",
    "MetricsFile",
    "Network",
    "Plan",
    "ProgressBar",
    "Report",
    "Runner",
    "Task",
    "TrainState",
    "create_optimizer",
    "create_schedule",
    "evaluate",
    "fit",
    "list_optimizers",
    "parallelize",
]
