"""The top room: what experiments share. Their configuration, data, models, run folders, training and error screens."""

from attn_flax.runs.build import TaskData, build_data, build_learning, build_model
from attn_flax.runs.command_line import error_screen, parse
from attn_flax.runs.compilation import keep_compiled_programs
from attn_flax.runs.conduct import Experiment, Trained, conduct
from attn_flax.runs.config import (
    BoxDataConfig,
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    GenerativeModelConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
    VideoDataConfig,
)
from attn_flax.runs.folder import RunFolder, environment
from attn_flax.runs.load import TrainedRun, load_run, read_run
from attn_flax.runs.memory import keep_freed_memory
from attn_flax.runs.pictures import draw_maps
from attn_flax.runs.processes import connect, is_first, quiet_unless_first, teller
from attn_flax.runs.train import check_training, is_finished, resumable, train

__all__ = [
    "BoxDataConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "Experiment",
    "GenerativeModelConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunFolder",
    "TaskData",
    "Trained",
    "TrainedRun",
    "TrainingConfig",
    "VideoDataConfig",
    "build_data",
    "build_learning",
    "build_model",
    "check_training",
    "conduct",
    "connect",
    "draw_maps",
    "environment",
    "error_screen",
    "is_finished",
    "is_first",
    "keep_compiled_programs",
    "keep_freed_memory",
    "load_run",
    "parse",
    "quiet_unless_first",
    "read_run",
    "resumable",
    "teller",
    "train",
]
