"""timm as an oracle, imported without torchvision, of which it needs only the names."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from unittest import mock

import pytest

STAND_INS = (
    "transforms", "transforms.functional", "transforms.v2", "ops", "ops.misc", "datasets", "datasets.folder", "models",
    "models.feature_extraction", "utils", "io",
)  # fmt: skip


class StandIn(ModuleType):
    """A module any name of which is a mock."""

    __path__ = ()

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=f"{self.__name__}.{name}")


def load(name: str) -> ModuleType:
    """A module of timm, such as "layers.halo_attn"; skips the test where PyTorch or timm is not installed."""
    pytest.importorskip("torch", reason="PyTorch is not installed: CONTRIBUTING.md says how")
    if "torchvision" not in sys.modules:
        for stand_in in ("torchvision", *(f"torchvision.{part}" for part in STAND_INS)):
            sys.modules[stand_in] = StandIn(stand_in)
    pytest.importorskip("timm", reason="timm is not installed: CONTRIBUTING.md says how")
    return importlib.import_module(f"timm.{name}")
