"""From cxr_convert --head=logits+cam to the pictures of cxr_predict --heatmap_dir."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_compress.cli.convert import main as convert
from cxr_compress.cli.predict import main as predict
from cxr_compress.device import Classifier, read_model
from cxr_compress.models.files import save_model
from tests.device.reference import INT8_MODEL
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it

LABELS = ("Mass / nodule", "Ödem", "c", "d")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one whose head has no map, and two images of a patient who is named in their file names."""
    folder = tmp_path_factory.mktemp("head")
    save_model(nets.chain(), folder / "model.keras")
    save_model(nets.linear(16), folder / "flat.keras")
    (folder / "images").mkdir()
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 40 + 200 * number, (300, 200), np.uint8)
        assert cv2.imwrite(str(folder / "images" / f"DOE_JANE_{number}.png"), image)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    path = folder / "cam.tflite"
    flags = [
        PRESET,
        f"--keras_model_file={folder / 'model.keras'}",
        f"--labels={','.join(LABELS)}",
        "--head=logits+cam",
    ]
    assert convert([*flags, f"--output_file={path}"]) == 0
    return path


def test_convert_with_the_map_writes_a_file_that_says_so(model: Path) -> None:
    assert read_model(model).info.recipe["head"] == "logits+cam"
    classifier = Classifier(model)
    found = classifier.predict(np.random.default_rng(5).integers(0, 256, (40, 30), np.uint8))
    bias = nets.chain().layers[-1].get_weights()[1]
    for number, label in enumerate(LABELS):
        assert abs(found.heatmap(label).mean() + bias[number] - found.logits[number]) < 1e-5
    assert abs(found.heatmap("c").mean() + bias[3] - found.logits[3]) > 1e-2  # the control: another finding's map


def test_predict_writes_a_picture_for_each_positive_finding_and_names_no_patient(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "maps"
    assert predict([f"--model={model}", str(folder / "images"), f"--heatmap_dir={target}", "--format=json"]) == 0
    out, err = capsys.readouterr()
    images = json.loads(out)["images"]
    assert "DOE" not in err
    written = {Path(path).name for image in images for path in image["heatmaps"].values()}
    assert written == {path.name for path in target.iterdir()}
    assert not any("doe" in name.lower() for name in written)
    positives = 0
    for number, image in enumerate(images, 1):
        positive = [entry["label"] for entry in image["findings"] if entry["positive"]]
        assert list(image["heatmaps"]) == positive
        positives += len(positive)
        for label in positive:
            place = LABELS.index(label) + 1
            path = Path(image["heatmaps"][label])
            assert path.name.startswith(f"image_{number:04d}_{place:02d}_")
            picture = cv2.imread(str(path))
            assert picture.shape[1] == 200
            assert picture.shape[0] > 300  # the image, and what the picture is not
    assert 0 < positives < 2 * len(LABELS)  # some finding is, some is not


def test_predict_without_the_flag_or_in_csv_prints_what_it_did(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(folder / "images" / "DOE_JANE_0.png")
    assert predict([f"--model={model}", image, "--format=json"]) == 0
    assert "heatmaps" not in json.loads(capsys.readouterr().out)["images"][0]
    assert predict([f"--model={model}", image, "--format=csv", f"--heatmap_dir={tmp_path}"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == len(LABELS)


def test_predict_pictures_go_neither_among_earlier_ones_nor_among_the_images(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(folder / "images" / "DOE_JANE_0.png")
    assert predict([f"--model={model}", image, f"--heatmap_dir={tmp_path}"]) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert before
    capsys.readouterr()
    other = str(folder / "images" / "DOE_JANE_1.png")
    assert predict([f"--model={model}", other, f"--heatmap_dir={tmp_path}"]) == 2
    assert f"holds {len(before)} pictures of an earlier run: give another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    images = folder / "images"
    assert predict([f"--model={model}", str(images), f"--heatmap_dir={images / 'maps'}"]) == 2
    assert "lies in" in capsys.readouterr().err
    assert not (images / "maps").exists()


def test_predict_heatmap_of_a_file_without_map_is_one_line_and_exit_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(folder / "images" / "DOE_JANE_0.png")
    assert predict([f"--model={INT8_MODEL}", image, f"--heatmap_dir={tmp_path / 'maps'}"]) == 2
    line = "cxr_predict: the model file gives logits alone, no map: export it with --head=logits+cam"
    assert capsys.readouterr().err == f"{line} (--head is a flag of cxr_convert)\n"
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ["--saved_model_dir=somewhere", "--head=logits+cam"],
            r"--head=logits\+cam reads the last feature map of a Keras file: give --keras_model_file",
        ),
        (["--head=logits+cam"], "found Flatten|found InputLayer"),
        (["--head=probabilities"], "should be one of"),
    ],
)
def test_convert_to_a_head_that_cannot_be_is_one_line_and_exit_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    import re

    source: list[Any] = [] if "saved_model" in flags[0] else [PRESET, f"--keras_model_file={folder / 'flat.keras'}"]
    assert convert([*source, *flags, f"--output_file={tmp_path / 'x.tflite'}"]) == 2
    err = capsys.readouterr().err
    assert re.search(line, err), err
    assert not (tmp_path / "x.tflite").exists()
