"""What a package of a user's own can add without a fork: registered in this file, used by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.data import DATASETS, Dataset, Request, register_reader
from cxr_compress.data.readers.base import ImageRecord, make_split
from cxr_compress.data.splits import carve_dev


@pytest.fixture
def disks(tmp_path: Path):
    """A folder of images NAME_0.png and NAME_1.png, the latter with a bright disk, and a reader for it."""
    rng = np.random.default_rng(0)
    for number in range(48):
        image = rng.integers(0, 128, (32, 32), np.uint8)
        if number % 2:
            cv2.circle(image, (16, 16), 6, 255, -1)
        cv2.imwrite(str(tmp_path / f"{number // 2:02d}_{number % 2}.png"), image)

    @register_reader("disks", help="drawn disks", options={"finding": "name of the finding, Disk unless given"})
    def read_disks(request: Request) -> Dataset:
        paths = sorted(request.folder.glob("*.png"))
        records = [ImageRecord(path, path.stem[:2], (float(path.stem.endswith("1")),)) for path in paths]
        findings = (request.text("finding", "Disk"),)
        train, dev = carve_dev(make_split("train", records[:32], findings), fraction=0.25, seed=request.seed)
        return Dataset("disks", findings, train, dev, make_split("test", records[32:], findings), "nobody")

    yield tmp_path
    del DATASETS["disks"]


def test_reader_is_in_the_help_and_the_flags_of_every_command(disks: Path, capsys) -> None:
    from cxr_compress.cli import compress, data, evaluate, train

    assert data.main(["--help"]) == 0
    assert "  disks: drawn disks\n    finding: name of the finding, Disk unless given\n" in capsys.readouterr().out
    for command in (compress, evaluate, train):
        assert command.main(["--helpfull"]) == 0
        assert "disks" in capsys.readouterr().out
    chosen = ["--dataset=disks", f"--data_dir={disks}", "--options=finding=Ring"]
    assert data.main(["check", *chosen, "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"][0]["finding"] == "Ring"
    assert data.main(["check", *chosen[:2], "--options=findings=Ring"]) == 2
    assert "disks: unknown option 'findings'; it knows allow_one_class, finding" in capsys.readouterr().err


def test_reader_feeds_a_run_of_cxr_compress(disks: Path, tmp_path_factory, capsys) -> None:
    from cxr_compress.cli.compress import main

    folder = tmp_path_factory.mktemp("run")
    flags = ["--dataset=disks", f"--data_dir={disks}", "--options=finding=Ring", f"--output_dir={folder}"]
    quick = ["--input_size=32", "--epochs=2", "--recovery_epochs=1", "--weight_sparsity=0", "--qat=never", "--force"]
    assert main(["--model=tiny_chexnet", *flags, *quick, "--batch_size=8"]) == 0
    report = json.loads((folder / "report.json").read_text())
    assert report["dataset"]["name"] == "disks"
    assert "Ring" in capsys.readouterr().out
