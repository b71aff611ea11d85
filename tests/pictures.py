"""Image folders to read: noise around one colour for each class."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (60, 180, 60), "red": (200, 50, 60)}


def write_image_folder(folder: Path, *, classes: tuple[str, ...], count: int, size: tuple[int, int]) -> Path:
    """Writes FOLDER/CLASS/INDEX.png, `count` images of (height, width) for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.normal(COLOURS[name], 30, (*size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
