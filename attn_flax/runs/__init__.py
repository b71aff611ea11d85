"""The top room: what experiments share. Their configuration, data, models, run folders, training and error screens."""

from attn_flax.runs.build import ImageData, build_data, build_learning, build_model
from attn_flax.runs.command_line import error_screen, parse
from attn_flax.runs.compilation import keep_compiled_programs
from attn_flax.runs.config import (
    CheckpointConfig,
    DataConfig,
    DistributedConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from attn_flax.runs.folder import RunFolder, environment
from attn_flax.runs.load import TrainedRun, load_run, read_run
from attn_flax.runs.processes import connect, is_first, quiet_unless_first, teller
from attn_flax.runs.train import check_training, is_finished, resumable, train

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "ImageData",
    "ModelConfig",
    "OptimizerConfig",
    "RunFolder",
    "TrainedRun",
    "TrainingConfig",
    "build_data",
    "build_learning",
    "build_model",
    "check_training",
    "connect",
    "environment",
    "error_screen",
    "is_finished",
    "is_first",
    "keep_compiled_programs",
    "load_run",
    "parse",
    "quiet_unless_first",
    "read_run",
    "resumable",
    "teller",
    "train",
]
