"""All problems of a set at once, from its splits and from its files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from cxr_compress.data.checks import count_images, examine, is_serious
from cxr_compress.data.dataset import Dataset, ProblemKind, Split
from cxr_compress.data.readers.base import read_dataset
from tests.data.test_duplicates import make_pictures

NAN = float("nan")


def write_image(path: Path, number: int, *, quality: int | None = None) -> None:
    """An image of its own for every number; at another quality it is the same image saved anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.resize(make_pictures(40, seed=9)[number], (64, 64), interpolation=cv2.INTER_CUBIC)
    options = [] if quality is None else [cv2.IMWRITE_JPEG_QUALITY, quality]
    path.write_bytes(cv2.imencode(".png" if quality is None else ".jpg", image, options)[1].tobytes())


def make_set(folder: Path, patients: str = "abcdefghi") -> Dataset:
    """Five images to train, two for dev, two to test."""
    paths = tuple(folder / f"{number}.png" for number in range(9))
    for number, path in enumerate(paths):
        write_image(path, number)
    labels = np.array([[number % 2] for number in range(9)], np.float32)
    whole = Split("all", paths, labels, tuple(patients))
    parts = [whole.take(range(*span), name) for span, name in (((0, 5), "train"), ((5, 7), "dev"), ((7, 9), "test"))]
    return Dataset("toy", ("Cough",), *parts, "nobody", patient_key="the letter")


def test_examine_sound_set_has_no_problem_and_tells_its_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    assert examine(make_set(tmp_path), workers=2, progress=lambda done, total: told.append((done, total))) == []
    assert told[-1] == (9, 9)


def test_examine_all_problems_come_at_once_the_worst_first(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, "abcdefgab")
    (tmp_path / "1.png").unlink()
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:200])
    (tmp_path / "8.png").write_bytes((tmp_path / "3.png").read_bytes())
    write_image(tmp_path / "6.png", 2, quality=60)
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())
    problems = examine(dataset)
    assert [(problem.kind, problem.splits, problem.count) for problem in problems] == [
        (ProblemKind.LEAKAGE, ("train", "test"), 2),
        (ProblemKind.MISSING, ("train",), 1),
        (ProblemKind.CORRUPT, ("dev",), 1),
        (ProblemKind.SAME_FILE, ("train", "test"), 1),
        (ProblemKind.SAME_IMAGE, ("train", "dev"), 1),
        (ProblemKind.SAME_FILE, ("train",), 1),
    ]
    assert [is_serious(problem) for problem in problems] == [True] * 5 + [False]
    assert problems[1].text == "toy: 1 of 9 images are missing; complete the set, or use allow_missing"
    assert problems[1].names == (f"{tmp_path / '1.png'}: no such file",)
    assert str(tmp_path / "5.png") in problems[2].names[0]
    assert problems[3].names == (f"{tmp_path / '3.png'} = {tmp_path / '8.png'}",)
    assert "2 images are 1 group(s) of the same file in train and test, 1 with different labels" in problems[3].text
    assert problems[4].names == (f"{tmp_path / '2.png'} = {tmp_path / '6.png'}",)
    assert "the same image saved anew in train and dev, 1 of different patients; keep each image" in problems[4].text


def test_examine_copy_of_a_copy_names_every_file_of_the_group(tmp_path: Path) -> None:
    dataset = make_set(tmp_path)
    (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())
    write_image(tmp_path / "7.png", 0, quality=60)
    same_file, same_image = sorted(examine(dataset), key=lambda problem: problem.kind.value)
    assert same_file.names == (f"{tmp_path / '0.png'} = {tmp_path / '4.png'}",)
    assert same_image.names == (" = ".join(str(tmp_path / f"{image}.png") for image in (0, 4, 7)),)
    assert same_image.splits == ("train", "test")


def test_examine_color_picture_in_a_gray_set_cannot_be_used(tmp_path: Path) -> None:
    dataset = make_set(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "7.png"), photo)
    (problem,) = examine(dataset)
    assert problem.kind is ProblemKind.CORRUPT
    assert "expected a gray image, got color" in problem.names[0]
    rgb = Dataset("toy", ("Cough",), *dataset.splits, "nobody", color="rgb")
    assert examine(rgb) == []


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3)])
def test_examine_arrays_are_looked_at_too(shape: tuple[int, ...]) -> None:
    def part(name: str, *numbers: int) -> Split:
        pictures = [cv2.resize(one, (28, 28)) for one in make_pictures(20)[list(numbers)]]
        pixels = np.stack(pictures if len(shape) == 2 else [np.repeat(one[..., None], 3, 2) for one in pictures])
        labels = np.array([[0], [1], [0], [1]], np.float32)
        return Split(name, (), labels, tuple(f"{name}{number}" for number in range(4)), pixels=pixels)

    train, dev = part("train", 0, 1, 2, 3), part("dev", 4, 5, 6, 7)
    assert examine(Dataset("toy", ("Cough",), train, dev, part("test", 8, 9, 10, 11), "nobody")) == []
    (problem,) = examine(Dataset("toy", ("Cough",), train, dev, part("test", 3, 9, 10, 11), "nobody"))
    assert problem.kind is ProblemKind.SAME_FILE
    assert problem.names == ("train image 3 = test image 0",)


def test_count_images_tells_positive_and_unknown_labels() -> None:
    labels = np.array([[1, NAN], [0.7, NAN], [0.2, 1]], np.float32)
    images = Split("train", tuple(map(Path, "abc")), labels, ("p", "p", "q"))
    dataset = Dataset("toy", ("Cough", "Fever"), images, images.take([0], "dev"), images.take([], "test"), "nobody")
    rows = [
        (count.split, count.finding, count.images, count.patients, count.positives, count.unknown)
        for count in count_images(dataset)
    ]
    assert rows == [
        ("train", "Cough", 3, 2, 2, 0),
        ("train", "Fever", 3, 2, 1, 2),
        ("dev", "Cough", 1, 1, 1, 0),
        ("dev", "Fever", 1, 1, 0, 1),
        ("test", "Cough", 0, 0, 0, 0),
        ("test", "Fever", 0, 0, 0, 0),
    ]


def test_examine_real_kermany_test_images_hold_the_six_known_copies(cxr_data: Path) -> None:
    """By hand: six pairs of test images are byte for byte the same, one of them under two patients' names."""
    whole = read_dataset("kermany", cxr_data / "kermany224")
    few = whole.train.take(range(0, len(whole.train), 40))
    problems = examine(Dataset("kermany", whole.findings, few, whole.dev.take(range(0, 499, 10)), whole.test, ""))
    (copies,) = [problem for problem in problems if problem.splits == ("test",)]
    assert (copies.kind, copies.count) == (ProblemKind.SAME_FILE, 6)
    assert "12 images are 6 group(s) of the same file within test, 1 of different patients" in copies.text
    assert any("NORMAL2-IM-0095-0001.jpeg" in name and "NORMAL2-IM-0096-0001.jpeg" in name for name in copies.names)
    assert not any(is_serious(problem) for problem in problems)
