"""The side of `experiments.benchmark` in PyTorch: the article's listing with its evident errors corrected.

It needs torch and numpy only. Told to, it trains an epoch and answers how many seconds it took.
"""

import json
import platform
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


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


def main(path, batch_size):
    """Answers every line of the standard input."""
    digits = np.load(path)
    images = torch.from_numpy(digits["image"]).permute(0, 3, 1, 2).contiguous()
    dataset = TensorDataset(images, torch.from_numpy(digits["label"]).long())
    batches = DataLoader(dataset, batch_size, shuffle=True, drop_last=True)
    model = network()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    answer({"torch": torch.__version__, "python": platform.python_version()})
    for _ in sys.stdin:
        start = time.perf_counter()
        for image, label in batches:
            optimizer.zero_grad()
            criterion(model(image), label).backward()
            optimizer.step()
        answer(time.perf_counter() - start)


def answer(value):
    """A line of JSON."""
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
