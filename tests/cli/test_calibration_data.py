"""--calibration_data of cxr_convert: a folder, a table, a data set, a cache, and what is odd about the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cxr_compress.cli.convert import main
from cxr_compress.cli.data import main as data_main
from cxr_compress.data import write_phantom
from cxr_compress.device import read_model
from cxr_compress.device.image_checks import ImageStatistics
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.models import ModelAbout
from cxr_compress.models.files import save_model
from tests.cli.runner import errors_of
from tests.lite import nets

PRESET = "--preset=imagenet_torch"  # of models whose file does not say it

FINDINGS = ("Atelectasis", "Effusion", "Mass", "Nodule")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.keras, 20 files in images/, the same as train and others as test in parts/, a drawn set in phantom/."""
    folder = tmp_path_factory.mktemp("calibration")
    save_model(nets.chain(), folder / "model.keras")
    for number in range(20):
        image = np.random.default_rng(number).integers(0, 200 + number, (24, 24), np.uint8)
        for place, part in {"images": image, "parts/train": image, "parts/test": image // 8}.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / place / f"{number:02}.png"), part)
    write_phantom(folder / "phantom", n_train=120, n_test=40, size=32)
    return folder


def convert(folder: Path, capsys: Capture, target: Path, *flags: str, model: str = "model.keras") -> tuple[bytes, str]:
    """Content and messages of a conversion that must succeed."""
    code = main(
        [PRESET, f"--keras_model_file={folder / model}", f"--output_file={target}", "--quant_type=int8", *flags]
    )
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return read_model(target).content, printed.err


def test_calibration_data_what_a_folder_or_a_table_holds_and_is_not_read_is_said(
    folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes((folder / "images" / f"{number:02}.png").read_bytes())
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    content, said = convert(folder, capsys, tmp_path / "x.tflite", f"--calibration_data={tmp_path}")
    assert "note: files of --calibration_data: 1 not read, being no image: 1 .db" in said
    table = tmp_path / "images.csv"
    table.write_text("sep=;\nImage Path;Patient ID\n" + "".join(f"{number:02}.png;p{number}\n" for number in range(20)))
    same, said = convert(folder, capsys, tmp_path / "y.tflite", f"--calibration_data={table}")
    assert "'Image Path' as path, 'Patient ID' as patient_id" in said
    assert same == content


def refused(folder: Path, capsys: Capture, tmp_path: Path, *flags: str) -> str:
    """The one line of a conversion that must fail."""
    source = [PRESET, f"--keras_model_file={folder / 'model.keras'}", f"--output_file={tmp_path / 'x.tflite'}"]
    assert main([*source, "--quant_type=int8", *flags]) == 2
    errors = errors_of(capsys.readouterr().err)
    assert len(errors) == 1
    assert not (tmp_path / "x.tflite").exists()
    return errors[0]


def table_of(folder: Path, path: Path, header: str, row: Any) -> Path:
    images = sorted((folder / "images").glob("*.png"))
    path.write_text("\n".join([header, *(row(number, image) for number, image in enumerate(images))]) + "\n")
    return path


def test_calibration_data_folder_and_tables_of_the_same_images_give_the_same_file(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    plain = table_of(folder, tmp_path / "plain.csv", "path", lambda number, image: str(image))
    parted = table_of(
        folder,
        tmp_path / "parted.csv",
        "path,Mass,patient_id,split",
        lambda number, image: f"{image},{number % 2},{number},{'test' if number > 17 else 'train'}",
    )
    contents = {}
    for name, where in {"folder": folder / "images", "plain": plain, "parted": parted}.items():
        steps = f"--calibration_steps={18 if name == 'parted' else 20}"
        contents[name], _ = convert(folder, capsys, tmp_path / name, f"--calibration_data={where}", steps)
        assert read_model(tmp_path / name).info.recipe["calibration_set"] == ("folder" if name == "folder" else "table")
    assert contents["plain"] == contents["folder"]
    assert contents["parted"] != contents["folder"]  # its test images, the brightest two, are left out


def test_calibration_data_table_takes_paths_from_its_own_folder_and_the_column_that_is_named(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = table_of(folder, folder / "images" / "list.csv", "image", lambda number, image: image.name)
    first, _ = convert(folder, capsys, tmp_path / "a", f"--calibration_data={table}", "--options=path_column=image")
    table.unlink()
    second, _ = convert(folder, capsys, tmp_path / "b", f"--calibration_data={folder / 'images'}")
    assert first == second


def test_calibration_data_folder_of_a_data_set_takes_its_training_part(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    made = []
    for number, flag in enumerate(("--calibration_data", "--data_dir")):
        flags = ("--dataset=phantom", f"{flag}={folder / 'phantom'}", "--calibration_steps=16")
        made.append(convert(folder, capsys, tmp_path / str(number), *flags)[0])
        assert read_model(tmp_path / str(number)).info.recipe["calibration_set"] == "phantom"
    assert made[0] == made[1]


def test_calibration_data_folder_with_parts_takes_train_alone(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    images, _ = convert(folder, capsys, tmp_path / "a", f"--calibration_data={folder / 'images'}")
    parts, said = convert(folder, capsys, tmp_path / "b", f"--calibration_data={folder / 'parts'}")
    assert images == parts
    assert "cxr_convert: calibrating on the part train of the folder" in said
    tests, _ = convert(folder, capsys, tmp_path / "c", f"--calibration_data={folder / 'parts' / 'test'}")
    assert tests != images  # control: those images would have made another file


def test_calibration_data_cache_gives_the_file_of_its_data_set(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    flags = ["cache", "--dataset=phantom", f"--data_dir={folder / 'phantom'}", "--input_size=16"]
    assert data_main([*flags, f"--cache_dir={tmp_path / 'cache'}"]) == 0
    capsys.readouterr()
    (train,) = (tmp_path / "cache").glob("train_*.npy")
    cached, _ = convert(folder, capsys, tmp_path / "a", f"--calibration_data={train}", "--novary_images")
    # A cache does not say whether its images have labels, so that copies are added unless the user says otherwise.
    assert cached != convert(folder, capsys, tmp_path / "c", f"--calibration_data={train}")[0]
    flags = ["--dataset=phantom", f"--data_dir={folder / 'phantom'}"]
    assert cached == convert(folder, capsys, tmp_path / "b", *flags)[0]
    assert read_model(tmp_path / "a").info.recipe["calibration_set"] == "cache"
    (test,) = (tmp_path / "cache").glob("test_*.npy")
    assert "is a cache of the test part" in refused(folder, capsys, tmp_path, f"--calibration_data={test}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--calibration_data=FOLDER/nowhere"],
            "nowhere is no folder: give a folder of images, a .csv or a .npy cache",
        ),
        (["--calibration_data=FOLDER/model.keras"], "to be a folder, a .csv or a .npy cache, got model.keras"),
        (["--calibration_data=FOLDER/missing.csv"], "missing.csv"),
        (["--calibration_data=FOLDER/missing.npy"], "missing.npy has no manifest of cxr_data cache"),
        (
            ["--calibration_data=FOLDER/images", "--data_dir=FOLDER"],
            "expected one of --calibration_data and --data_dir",
        ),
        (["--data_dir=FOLDER"], "--dataset and --data_dir belong together"),
        (["--dataset=phantom"], "--dataset and --data_dir belong together"),
        (["--dataset=phantom", "--calibration_data=FOLDER/images"], "phantom"),
    ],
)
def test_calibration_data_of_bad_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: Capture, flags: list[str], message: str
) -> None:
    assert message in refused(folder, capsys, tmp_path, *(flag.replace("FOLDER", str(folder)) for flag in flags))


def test_calibration_data_with_too_few_images_in_the_table_is_one_line(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = tmp_path / "few.csv"
    table.write_text(f"path\n{folder / 'images' / '00.png'}\n")
    line = refused(folder, capsys, tmp_path, f"--calibration_data={table}")
    assert "expected at least 16 calibration images, got 1" in line


def test_calibration_images_unlike_the_training_images_are_warned_of_with_numbers(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The model says that its images were bright; those given are not, and another preset makes it worse."""
    bright = ModelAbout(
        FINDINGS, PreprocessSpec.preset("imagenet_torch", 16, 16), images=ImageStatistics((0.7,), (0.2,))
    )
    fitting = ModelAbout(FINDINGS, bright.preprocess, images=ImageStatistics((0.4,), (0.135,)))
    for name, about in {"bright": bright, "fitting": fitting}.items():
        save_model(nets.chain(), tmp_path / f"{name}.keras", about=about)
    data = f"--calibration_data={folder / 'images'}"
    _, said = convert(tmp_path, capsys, tmp_path / "a", data, model="bright.keras")
    (line,) = [line for line in said.splitlines() if "warning" in line]
    assert line.startswith("cxr_convert: warning: the calibration images have mean ")
    assert "the training images had 0.939 and 0.873" in line  # (0.7 - 0.485) / 0.229 and 0.2 / 0.229
    _, said = convert(tmp_path, capsys, tmp_path / "b", data, model="fitting.keras")
    assert "warning" not in said
    _, said = convert(tmp_path, capsys, tmp_path / "c", data, "--preset=raw", "--force", model="fitting.keras")
    assert "the preprocessing gives -2.118 to 2.64 only" in said
