"""How a task is learned: its state, its step, devices, checkpoints and the loop."""

from attn_flax.training.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    Restored,
)
from attn_flax.training.freezing import Frozen, freeze, thaw
from attn_flax.training.interruption import StoppedError, StopRequest
from attn_flax.training.leaves import ArchitectureError, check_architecture, leaf_names
from attn_flax.training.loop import Callback, NonFiniteError, Plan, Report, Tally, evaluate, fit
from attn_flax.training.network import Network
from attn_flax.training.optimizers import create_optimizer, create_schedule, list_optimizers
from attn_flax.training.parallel import Runner, parallelize
from attn_flax.training.profile import Profile
from attn_flax.training.reports import EventFiles, MetricsFile, ProgressBar
from attn_flax.training.rows import Rows, reduce_over
from attn_flax.training.saver import Saver
from attn_flax.training.step import Learning, TrainState
from attn_flax.training.task import Task
from attn_flax.training.watchdog import Watchdog

__all__ = [
    "ArchitectureError",
    "Callback",
    "CheckpointError",
    "Checkpoints",
    "DamagedCheckpointError",
    "EventFiles",
    "Frozen",
    "Learning",
    "MetricsFile",
    "Network",
    "NonFiniteError",
    "Plan",
    "Profile",
    "ProgressBar",
    "Report",
    "Restored",
    "Rows",
    "Runner",
    "Saver",
    "StopRequest",
    "StoppedError",
    "Tally",
    "Task",
    "TrainState",
    "Watchdog",
    "check_architecture",
    "create_optimizer",
    "create_schedule",
    "evaluate",
    "fit",
    "freeze",
    "leaf_names",
    "list_optimizers",
    "parallelize",
    "reduce_over",
    "thaw",
]
