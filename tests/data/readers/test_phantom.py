"""Writing and reading a phantom set: resumable, atomic, never mixed up, always called synthetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import PHANTOM_FINDINGS, decode_split, load_dataset, write_phantom
from cxr_compress.data.readers.phantom import load_phantom
from cxr_compress.device.preprocess import PreprocessSpec, decode_image
from cxr_compress.errors import DataError

SMALL = {"n_train": 120, "n_test": 60, "size": 32}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, **SMALL)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_load_dataset_phantom_is_synthetic_patient_wise_and_multi_label(written: Path) -> None:
    dataset = load_dataset("phantom", written)
    assert dataset.synthetic
    assert "synthetic" in dataset.attribution
    assert "rocedural" in dataset.attribution
    assert dataset.findings == PHANTOM_FINDINGS
    assert (len(dataset.train) + len(dataset.dev), len(dataset.test)) == (120, 60)
    labels = np.concatenate([split.labels for split in dataset.splits])
    assert ((labels.mean(axis=0) >= 0.15) & (labels.mean(axis=0) <= 0.5)).all()
    assert (labels.sum(axis=1) >= 2).any()
    patients, images = np.unique([p for split in dataset.splits for p in split.patients], return_counts=True)
    assert set(images) == {1, 2, 3}
    assert sum(len(set(split.patients)) for split in dataset.splits) == len(patients)


def test_write_phantom_images_are_gray_8_bit_png_of_the_size(written: Path) -> None:
    split = load_phantom(written).test
    assert all(path.suffix == ".png" for path in split.paths)
    image = decode_image(split.paths[0])
    assert (image.dtype, image.shape) == (np.uint8, (32, 32))
    assert decode_split(split, PreprocessSpec(32, 32)).std() > 30


def test_write_phantom_interrupted_call_is_refused_on_loading_and_resumed_to_the_same_bytes(
    tmp_path: Path, written: Path
) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 180
        if done >= 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, **SMALL, progress=stop)
    with pytest.raises(DataError, match=r"expected phantom.json in .*no phantom set was finished"):
        load_phantom(tmp_path)
    first = sorted((tmp_path / "images").iterdir())[0]
    before = first.stat().st_mtime_ns
    write_phantom(tmp_path, **SMALL)
    assert first.stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(written)


def test_write_phantom_finished_set_is_left_alone(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    write_phantom(written, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_write_phantom_other_parameters_are_refused_with_what_differs(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a set with n_train 120 instead of 121, seed 0 instead of 4; delete it"):
        write_phantom(written, **{**SMALL, "n_train": 121, "seed": 4})
    (tmp_path / "phantom_unfinished.json").write_text(json.dumps({"size": 64}))
    with pytest.raises(DataError, match=r"holds a set with .*size 64 instead of 32"):
        write_phantom(tmp_path, **SMALL)
    (tmp_path / "phantom_unfinished.json").write_text("{")
    with pytest.raises(DataError, match=r"phantom_unfinished.json in .* is damaged"):
        write_phantom(tmp_path, **SMALL)


def test_write_phantom_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"expected .* to be new, empty or a phantom set, it holds something else"):
        write_phantom(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="holds something else"):
        write_phantom(tmp_path / "thesis.txt", **SMALL)


@pytest.mark.parametrize("wrong", [{"n_train": 3}, {"n_test": 0}, {"size": 8}, {"seed": -1}])
def test_write_phantom_parameter_out_of_range_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(DataError, match=f"phantom: expected {name} of at least"):
        write_phantom(tmp_path / "new", **{**SMALL, **wrong})
    assert not (tmp_path / "new").exists()


def test_load_phantom_missing_image_and_damaged_labels_are_refused(tmp_path: Path) -> None:
    write_phantom(tmp_path, **SMALL)
    image = next((tmp_path / "images").iterdir())
    image.rename(image.with_suffix(".gone"))
    with pytest.raises(DataError, match=r"1 images of labels.csv are missing"):
        load_phantom(tmp_path)
    image.with_suffix(".gone").rename(image)
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("Nodule", "Nodle"))
    with pytest.raises(DataError, match=r"labels.csv in .* is missing or damaged .*write the set again"):
        load_phantom(tmp_path)
