"""The sides of a benchmark that run in PyTorch, by an interpreter that has torch and numpy, and timm if need be.

    python -m experiments.benchmarking.torch_side '{"function": "attention", "side": "torch", …}'

It imports nothing of this library.
"""

import importlib.machinery
import importlib.util
import json
import platform
import sys
import time
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from experiments.benchmarking.side import answer, serve, timed
from experiments.benchmarking.works import BACKWARD

TORCHVISION = (
    *("", ".transforms", ".transforms.functional", ".transforms.v2", ".ops", ".ops.misc", ".datasets"),
    *(".datasets.folder", ".models", ".models.feature_extraction", ".utils", ".io"),
)


def main(spec):
    """Builds what the specification says, and serves it."""
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    if spec["function"] == "epoch":
        epochs = _epochs(**spec["arguments"])
        serve(lambda: next(epochs), versions)
        return
    torch.manual_seed(0)
    if spec["function"] == "training":
        serve(_training(**spec["arguments"]), versions)
        return
    built = BUILDERS[spec["function"]](**spec["arguments"])
    if built is None:
        answer({})
        return
    serve(timed(_compiled(*built, spec["pass"] == BACKWARD)), versions)


def _compiled(function, differentiable, backward):
    """A call without arguments: the output, for both passes with the gradients to a given cotangent."""
    for array in differentiable:
        array.requires_grad_(backward)
    if not backward:
        return torch.no_grad()(function)
    cotangent = torch.randn_like(function())

    def both():
        output = function()
        return output, torch.autograd.grad(output, differentiable, cotangent)

    return both


def _attention(*, batch, tokens, heads, features, bias, mask, dtype):
    dtype = getattr(torch, dtype)
    q, k, v = (torch.randn(batch, tokens, heads, features, dtype=dtype) for _ in range(3))
    table = torch.randn(1, heads, tokens, tokens, dtype=dtype) if bias else None
    if mask:
        visible = (torch.rand(batch, 1, tokens, tokens) < 0.8) | torch.eye(tokens, dtype=torch.bool)
        table = (0 if table is None else table) + torch.where(visible, 0.0, -torch.inf).to(dtype)

    def attend():
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*heads_first, attn_mask=table).transpose(1, 2)

    return attend, (q, k, v)


def _depthwise(*, shape, window, dilation):
    x = torch.randn(*shape).permute(0, 3, 1, 2)
    kernel = torch.randn(shape[-1], 1, *window)
    padding = [d * (w - 1) // 2 for w, d in zip(window, dilation, strict=True)]
    return lambda: F.conv2d(x, kernel, padding=padding, dilation=dilation, groups=shape[-1]), (x, kernel)


def _mechanism(*, name, shape, like_timm):
    _stand_in_for_torchvision()
    from timm.layers import create_attn

    return _module(create_attn(name, shape[-1], **like_timm), shape)


def _model(*, name, shape):
    _stand_in_for_torchvision()
    import timm

    return _module(timm.create_model(name), shape) if timm.is_model(name) else None


def _training(*, name, shape, dtype, steps):
    """The seconds of a step of classification: forward, backward and Adam; on a GPU compiled, and Adam fused."""
    _stand_in_for_torchvision()
    import timm

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    model = timm.create_model(name).to(device, memory_format=layout).train()
    forward = torch.compile(model) if device.type == "cuda" else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=device.type == "cuda")
    images = torch.randn(*shape, device=device).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    labels = torch.randint(1000, shape[:1], device=device)

    def run():
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                loss = F.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    return run


def _module(module, shape):
    """In evaluation mode; differentiated by its input and its parameters."""
    module.eval()
    x = torch.randn(*shape).permute(0, 3, 1, 2)
    return lambda: module(x), (x, *module.parameters())


def _stand_in_for_torchvision():
    """timm imports torchvision, which not every torch has; its layers and networks do not need it."""
    if importlib.util.find_spec("torchvision"):
        return
    for name in (f"torchvision{part}" for part in TORCHVISION):
        module = mock.MagicMock(name=name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        sys.modules[name] = module


class Attention(nn.Module):
    """x · relu(conv2(sigmoid(conv1(x))))."""

    def __init__(self, channels, reduction=8):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // reduction, kernel_size=1)
        self.conv2 = nn.Conv2d(channels // reduction, channels, kernel_size=1)

    def forward(self, x):
        return x * torch.relu(self.conv2(torch.sigmoid(self.conv1(x))))


def network():
    """The article's network, for images of three channels."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=3, padding=1),
        Attention(64),
        nn.Conv2d(64, 128, kernel_size=3, padding=1),
        nn.AdaptiveAvgPool2d(8),
        nn.Flatten(),
        nn.Linear(128 * 8 * 8, 512),
        nn.Linear(512, 10),
    )


def _epochs(*, file, batch_size):
    """The seconds of each epoch: the article's listing with its evident errors corrected."""
    digits = np.load(file)
    images = torch.from_numpy(digits["image"]).permute(0, 3, 1, 2).contiguous()
    dataset = TensorDataset(images, torch.from_numpy(digits["label"]).long())
    batches = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    model = network()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    while True:
        start = time.perf_counter()
        for image, label in batches:
            optimizer.zero_grad()
            criterion(model(image), label).backward()
            optimizer.step()
        yield time.perf_counter() - start


BUILDERS = {"attention": _attention, "depthwise": _depthwise, "mechanism": _mechanism, "model": _model}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
