"""The MedMNIST reader: archives by file, flag and size; binary, multi-label and multi-class; what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import NIH_FINDINGS, load_dataset
from cxr_compress.errors import DataError

COUNTS = {"train": 40, "val": 14, "test": 28}


def make_archive(
    path: Path, *, size: int = 28, labels: int = 1, classes: int = 2, rgb: bool = False, **changes
) -> Path:
    """Arrays as the published archives hold them: images uint8, labels uint8 (n, 1) or int64 (n, 14)."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in COUNTS.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, size, size, *([3] if rgb else []))).astype(np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count)[:, None] + np.arange(labels)) % classes
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def test_load_dataset_medmnist_file_gives_official_splits_as_arrays(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "pneumoniamnist_64.npz", size=64)
    dataset = load_dataset("medmnist", path)
    assert dataset.findings == ("Pneumonia",)
    assert [(split.name, len(split)) for split in dataset.splits] == [("train", 40), ("dev", 14), ("test", 28)]
    with np.load(path) as archive:
        for split, part in zip(dataset.splits, COUNTS, strict=True):
            np.testing.assert_array_equal(split.pixels, archive[f"{part}_images"])
            np.testing.assert_array_equal(split.labels, archive[f"{part}_labels"])
            assert split.paths == ()
            assert len(set(split.patients)) == len(split)
    assert dataset.color == "gray"
    assert "every image counts as a patient" in dataset.notes[0]


def test_load_dataset_medmnist_folder_flag_and_size_choose_the_file(tmp_path: Path) -> None:
    make_archive(tmp_path / "pneumoniamnist.npz")
    assert load_dataset("medmnist", tmp_path).train.pixels.shape == (40, 28, 28)
    make_archive(tmp_path / "pneumoniamnist_64.npz", size=64)
    with pytest.raises(DataError, match=r"expected one .npz in .*, found 2; name the file, or choose with the options"):
        load_dataset("medmnist", tmp_path)
    options = {"flag": "pneumoniamnist"}
    assert load_dataset("medmnist", tmp_path, options=options).train.pixels.shape == (40, 28, 28)
    assert load_dataset("medmnist", tmp_path, options={**options, "size": "64"}).train.pixels.shape == (40, 64, 64)
    with pytest.raises(DataError, match=r"expected pneumoniamnist_128.npz in .*, it is missing"):
        load_dataset("medmnist", tmp_path, options={**options, "size": 128})
    with pytest.raises(DataError, match="expected the option size to be a number, got 'big'"):
        load_dataset("medmnist", tmp_path, options={**options, "size": "big"})


def test_load_dataset_medmnist_chest_has_the_14_findings(tmp_path: Path) -> None:
    dataset = load_dataset("medmnist", make_archive(tmp_path / "chestmnist.npz", labels=14))
    assert dataset.findings == NIH_FINDINGS
    np.testing.assert_array_equal(dataset.dev.labels[1], [1, 0] * 7)


def test_load_dataset_medmnist_classes_become_one_column_each(tmp_path: Path) -> None:
    dataset = load_dataset("medmnist", make_archive(tmp_path / "dermamnist.npz", classes=7, rgb=True))
    assert dataset.findings[4] == "Melanoma"
    assert dataset.train.pixels.shape == (40, 28, 28, 3)
    assert dataset.color == "rgb"
    np.testing.assert_array_equal(dataset.test.labels.sum(axis=1), np.ones(28))
    np.testing.assert_array_equal(np.argmax(dataset.test.labels, axis=1), np.arange(28) % 7)
    other = load_dataset("medmnist", make_archive(tmp_path / "othermnist.npz", classes=4))
    assert other.findings == ("Class 0", "Class 1", "Class 2", "Class 3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": None}, "pneumoniamnist.npz lacks val_labels; expected train_images"),
        ({"val_labels": np.zeros((3, 1), int)}, "got 14 val_images and 3 val_labels"),
        ({"val_labels": np.zeros(14, int)}, r"whole numbers \(n, k\) from 0 .*got int64 of shape \(14,\)"),
        ({"val_labels": np.full((14, 1), -1)}, r"whole numbers \(n, k\) from 0"),
        ({"val_labels": np.full((14, 1), 0.5)}, r"whole numbers \(n, k\) from 0 .*got float64"),
        ({"test_images": np.zeros((28, 4, 4), np.float32)}, "expected pixels as uint8"),
        ({"test_images": np.array([{}] * 28, object)}, r"pneumoniamnist.npz cannot be read \(Object arrays"),
    ],
)
def test_load_dataset_medmnist_other_content_is_refused(tmp_path: Path, changes, message: str) -> None:
    path = make_archive(tmp_path / "pneumoniamnist.npz", **changes)
    with pytest.raises(DataError, match=message):
        load_dataset("medmnist", path)


def test_load_dataset_medmnist_cut_off_or_changed_file_is_refused(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "pneumoniamnist.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"pneumoniamnist.npz is no .npz or cut off; download it again"):
        load_dataset("medmnist", path)
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(DataError, match=r"pneumoniamnist.npz cannot be read \(.*download it again"):
        load_dataset("medmnist", path)
