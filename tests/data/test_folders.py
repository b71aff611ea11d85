"""Image folders: their layouts, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from attn_flax.data import CorruptRecordError, EmptySplitError, FolderError, load_dataset, train_batches
from attn_flax.data.folders import load_folder_splits
from tests.data.sources import write_images


def contents(source):
    return sorted((source[i]["label"], source[i]["image"].tobytes()) for i in range(len(source)))


def expected(pixels, names):
    return sorted((names.index(name), image.tobytes()) for (name, _), image in pixels.items())


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_split_folders(tmp_path, validation):
    names = ("cat", "dog", "eel")
    written = {
        split: write_images(tmp_path / folder, names, count, start=start)
        for split, folder, count, start in (
            ("train", "train", 4, 0),
            ("validation", validation, 2, 10),
            ("test", "test", 3, 20),
        )
    }
    dataset = load_dataset("animals", folder=tmp_path)
    assert (dataset.name, dataset.class_names) == ("animals", names)
    for split, pixels in written.items():
        assert contents(getattr(dataset, split)) == expected(pixels, names)


def test_plain_folder_holds_out_a_fifth_of_each_class(tmp_path):
    names = ("a", "b")
    pixels = write_images(tmp_path, names[:1], 10) | write_images(tmp_path, names[1:], 25)
    dataset = load_dataset("plain", folder=tmp_path, validation=0.0)
    assert np.bincount([dataset.test[i]["label"] for i in range(7)]).tolist() == [2, 5]
    assert sorted(contents(dataset.train) + contents(dataset.test)) == expected(pixels, names)
    assert dataset.validation is None


def test_train_without_test_holds_out_of_train(tmp_path):
    pixels = write_images(tmp_path / "train", ("a", "b"), 10)
    dataset = load_dataset("halves", folder=tmp_path, validation=0.25)
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [12, 4, 4]
    everything = contents(dataset.train) + contents(dataset.validation) + contents(dataset.test)
    assert sorted(everything) == expected(pixels, ("a", "b"))


def test_kinds_of_files(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    flat = Image.fromarray(np.full((6, 6, 3), 200, np.uint8))
    for name in ("1.png", "2.jpg", "3.JPEG", "4.bmp", "deep/5.webp", "6.txt"):
        path = tmp_path / "a" / name
        path.write_text("no image") if name.endswith("txt") else flat.save(path)
    (tmp_path / ".hidden").mkdir()
    names, splits = load_folder_splits(tmp_path)
    sources = [*(splits["train"][i] for i in range(4)), splits["test"][0]]
    assert names == {"label": ("a",)}
    assert all(np.abs(record["image"].astype(int) - 200).max() <= 2 for record in sources)


def test_no_folder(tmp_path):
    with pytest.raises(FolderError, match=r"expected a folder of images, got .*nowhere"):
        load_dataset("x", folder=tmp_path / "nowhere")


def test_no_class_folders(tmp_path):
    with pytest.raises(FolderError, match=r"expected one folder per class in .*, got none"):
        load_dataset("x", folder=tmp_path)


def test_no_images(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(EmptySplitError, match=r"split 'train' is empty: expected images \(\.bmp.*\) in "):
        load_dataset("x", folder=tmp_path)


def test_different_classes(tmp_path):
    write_images(tmp_path / "train", ("a", "b"), 2)
    write_images(tmp_path / "test", ("b", "c"), 2)
    with pytest.raises(FolderError, match="same class folders in train and test, got a, c in only one"):
        load_dataset("x", folder=tmp_path)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.full)])
def test_corrupt_image_is_named(tmp_path, workers):
    write_images(tmp_path / "train", ("a", "b"), 3)
    write_images(tmp_path / "test", ("a", "b"), 1)
    broken = tmp_path / "train" / "b" / "001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    dataset = load_dataset("x", folder=tmp_path, validation=0.0)
    with pytest.raises(CorruptRecordError, match=rf"record 4 of split 'train', {broken}, cannot be read"):
        dataset.train[4]
    batches = train_batches(
        dataset.train,
        batch_size=6,
        seed=0,
        shape=(4, 6, 3),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        num_classes=2,
        workers=workers,
    )
    with pytest.raises(CorruptRecordError, match="record 4 of split 'train'"):
        next(batches)
    batches.close()
