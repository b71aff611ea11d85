"""The top room: what experiments share. Their configuration, data, models, run folders and error screens."""

from attn_flax.runs.build import ImageData, build_data, build_learning, build_model
from attn_flax.runs.command_line import error_screen, parse
from attn_flax.runs.config import DataConfig, ModelConfig, OptimizerConfig
from attn_flax.runs.folder import RunFolder, environment

__all__ = [
    "DataConfig",
    "ImageData",
    "ModelConfig",
    "OptimizerConfig",
    "RunFolder",
    "build_data",
    "build_learning",
    "build_model",
    "environment",
    "error_screen",
    "parse",
]
