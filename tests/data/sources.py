"""Sources and folders that tests make."""

import dataclasses

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Records of two arrays."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": int(self.labels[index])}


def numbered(count, shape=(5, 3, 1)):
    """Records whose pixels tell which they are: the first one is its index, the others are noise."""
    images = np.random.default_rng(7).integers(0, 256, (count, *shape), np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    return ArraySource(images, np.arange(count) % 10)


def write_images(folder, classes, count, size=(4, 6), mode="RGB", start=0):
    """Writes folder/CLASS/N.png and returns {(class, N): pixels}."""
    pixels = {}
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + count):
            rng = np.random.default_rng(hash_of(name, number))
            shape = size if mode == "L" else (*size, 3)
            pixels[name, number] = rng.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels[name, number]).save(folder / name / f"{number:03}.png")
    return pixels


def hash_of(name, number):
    return sum(map(ord, name)) * 1000 + number
