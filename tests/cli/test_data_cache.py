"""`cxr_data cache`: what it leaves on disk, prints and refuses."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.cli.data import main
from cxr_compress.cli.progress import Progress
from cxr_compress.data import decode_split, load_kermany
from cxr_compress.device.preprocess import PreprocessSpec
from tests.cli.runner import BLOCK_TENSORFLOW, run_module
from tests.data.files import make_kermany


@pytest.fixture
def kermany(tmp_path) -> Path:
    return make_kermany(tmp_path / "images")


def arguments(images: Path, cache: Path, *more: str) -> list[str]:
    return ["cache", "--dataset=kermany", f"--data_dir={images}", f"--cache_dir={cache}", "--input_size=16,8", *more]


def rows(capsys) -> list[dict]:
    return json.loads(capsys.readouterr().out)["caches"]


def test_cache_builds_every_split_and_size_and_a_second_call_decodes_nothing(tmp_path, kermany, capsys) -> None:
    assert main(arguments(kermany, tmp_path / "cache", "--format=json")) == 0
    first = rows(capsys)
    assert [(row["split"], row["size"]) for row in first] == [
        (split, size) for size in (16, 8) for split in ("train", "dev", "test")
    ]
    dataset = load_kermany(kermany)
    for row, split in zip(first, dataset.splits, strict=False):
        content = Path(row["path"]).read_bytes()
        assert row["images"] == row["decoded"] == len(split)
        assert row["bytes"] == len(content)
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
        np.testing.assert_array_equal(np.load(row["path"]), decode_split(split, PreprocessSpec(16, 16)))
    assert main(arguments(kermany, tmp_path / "cache", "--format=json")) == 0
    again = rows(capsys)
    assert all(row["decoded"] == 0 and row["images_per_second"] is None for row in again)
    assert [row["sha256"] for row in again] == [row["sha256"] for row in first]


def test_cache_color_holds_three_channels(tmp_path, kermany, capsys) -> None:
    assert main(arguments(kermany, tmp_path / "cache", "--color", "--format=json")) == 0
    assert np.load(rows(capsys)[0]["path"]).shape[1:] == (16, 16, 3)


def test_cache_table_and_csv_have_a_row_per_cache_and_progress_names_no_image(tmp_path, kermany, capsys) -> None:
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16")) == 0
    shown = capsys.readouterr()
    assert all(word in shown.out for word in ("images per second", "sha256", "train", "dev", "test"))
    assert "caching train at 16x16" in shown.err
    assert "person" not in shown.err
    assert "IM-" not in shown.err
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16", "--format=csv")) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["split"] for row in found] == ["train", "dev", "test"]


def test_cache_verify_passes_on_a_whole_cache_and_ends_with_2_on_a_flipped_bit(tmp_path, kermany, capsys) -> None:
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16", "--format=json")) == 0
    path = Path(rows(capsys)[2]["path"])
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16", "--verify")) == 0
    assert "verifying test at 16x16" in capsys.readouterr().err
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16", "--verify")) == 2
    assert f"the cache {path} is damaged" in capsys.readouterr().err


def test_cache_with_a_broken_image_names_it_and_ends_with_2(tmp_path, kermany, capsys) -> None:
    image = next((kermany / "test").rglob("person100_virus_200.jpeg"))
    image.write_bytes(image.read_bytes()[:-30])
    assert main(arguments(kermany, tmp_path / "cache", "--input_size=16")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("cxr_data: 1 of the 60 images in test cannot be used: ")
    assert "person100_virus_200.jpeg" in error
    assert not list((tmp_path / "cache").glob("test_*.npy"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--cache_dir=", "--cache_dir is missing"),
        ("--dataset=", "--dataset is missing"),
        ("--input_size=", "at least one number of pixels"),
        ("--input_size=12,x", "expected --input_size as numbers of pixels such as 224,112; got 'x'"),
        ("--input_size=0", "got '0'"),
        ("image.png", "expected flags only after cache, got 'image.png'"),
    ],
)
def test_cache_wrong_flags_end_with_2_and_one_line(tmp_path, kermany, capsys, more, words) -> None:
    assert main(arguments(kermany, tmp_path / "cache", more)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_cache_runs_without_tensorflow(tmp_path, kermany) -> None:
    done = run_module("data", *arguments(kermany, tmp_path / "cache"), prelude=BLOCK_TENSORFLOW)
    assert done.returncode == 0, done.stderr


def test_cache_of_a_color_set_keeps_its_color_unless_told_otherwise(tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = rng.integers(0, 256, (14, 28, 28, 3), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(14) % 7)[:, None].astype(np.uint8)
    np.savez(tmp_path / "dermamnist.npz", **arrays)
    command = ["cache", "--dataset=medmnist", f"--data_dir={tmp_path}", f"--cache_dir={tmp_path / 'cache'}"]
    assert main([*command, "--input_size=14", "--format=json"]) == 0
    assert np.load(rows(capsys)[0]["path"]).shape == (14, 14, 14, 3)
    assert main([*command, "--input_size=14", "--nocolor"]) == 2
    assert "expected a gray image" in capsys.readouterr().err


def test_cache_interrupted_says_that_nothing_is_lost_and_goes_on(tmp_path, kermany, capsys, monkeypatch) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "counter", lambda *_: interrupt)
        assert main(arguments(kermany, tmp_path / "cache")) == 130
    assert "interrupted; what is done is kept; the same command goes on from there" in capsys.readouterr().err
    assert main(arguments(kermany, tmp_path / "cache")) == 0
