"""All problems of a set at once, from its splits and from its files; copies are found, whatever they were saved as."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.data.checks import (
    MAX_DISTANCE,
    _bit_counts,
    _candidates,
    count_images,
    equal_groups,
    examine,
    is_serious,
    perceptual_hash,
    similar_groups,
)
from cxr_compress.data.dataset import Dataset, ProblemKind
from cxr_compress.data.readers.base import read_dataset
from cxr_compress.data.splits import Split

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


def shrink(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)


def make_pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random images: enough alike in kind, never the same."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, 8, 8)).astype(np.uint8)
    return np.stack([cv2.resize(one, (32, 32), interpolation=cv2.INTER_CUBIC) for one in noise])


def save_anew(image: np.ndarray, how: str) -> np.ndarray:
    """A copy as sets have them."""
    half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return {
        "jpeg of half the size": cv2.imdecode(cv2.imencode(".jpg", half, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0),
        "less contrast": np.clip(image * 0.7 + 30, 0, 255).astype(np.uint8),
        "16 bits and back": (image.astype(np.uint16) * 257 // 256).astype(np.uint8),
        "brighter": np.clip(image.astype(int) + 12, 0, 255).astype(np.uint8),
    }[how]


@pytest.mark.parametrize("how", ["jpeg of half the size", "less contrast", "16 bits and back", "brighter"])
def test_similar_groups_real_images_saved_anew_are_found_and_no_others(cxr_data: Path, how: str) -> None:
    folder = cxr_data / "kermany224" / "images" / "test" / "PNEUMONIA"
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(folder.iterdir())[:40]]
    thumbnails = np.stack(
        [shrink(image) for image in images] + [shrink(save_anew(image, how)) for image in images[:15]]
    )
    assert sorted(similar_groups(thumbnails)) == [(image, 40 + image) for image in range(15)]


def test_similar_groups_chains_and_many_copies_are_one_group() -> None:
    pictures = make_pictures(30)
    rng = np.random.default_rng(1)
    copies = [np.clip(pictures[3].astype(int) + rng.integers(-3, 4, (32, 32)), 0, 255) for _ in range(25)]
    thumbnails = np.concatenate([pictures, np.array(copies, np.uint8), pictures[7:8]])
    assert similar_groups(thumbnails) == [(3, *range(30, 55)), (7, 55)]


def test_similar_groups_flat_images_and_mirrored_images_are_none() -> None:
    flat = np.stack([np.full((32, 32), level, np.uint8) for level in (0, 0, 128, 255)])
    pictures = make_pictures(5)
    assert similar_groups(np.concatenate([flat, pictures, pictures[:, :, ::-1]])) == []
    assert similar_groups(np.empty((0, 32, 32), np.uint8)) == []


def test_similar_groups_same_hash_of_different_pictures_is_told_apart_by_the_thumbnails() -> None:
    """Only low frequencies enter the hash; a fine pattern changes the image but not one bit."""
    picture = (make_pictures(1)[0] // 4 + 96).astype(np.uint8)
    wave = np.cos((2 * np.arange(32) + 1) * 20 * np.pi / 64)  # the 20th frequency of the DCT, on both axes
    patterned = np.rint(picture + 60 * np.outer(wave, wave)).astype(np.uint8)
    assert perceptual_hash(picture) == perceptual_hash(patterned)
    assert similar_groups(np.stack([picture, patterned])) == []
    assert similar_groups(np.stack([picture, patterned, picture, patterned])) == [(0, 2), (1, 3)]


def test_candidates_are_exactly_the_pairs_within_the_distance() -> None:
    rng = np.random.default_rng(0)
    hashes = [int(word) for word in rng.integers(0, 2**63, 60)]
    for number in range(60):  # neighbors 0 to 8 bits away, in random places
        flips = rng.choice(64, number % 9, replace=False)
        hashes.append(hashes[number] ^ sum(1 << int(bit) for bit in flips))
    words = np.array(hashes, np.uint64)
    found = {
        tuple(sorted(pair))
        for one, other in _candidates(words, np.arange(len(words)))
        for pair in zip(one.tolist(), other.tolist(), strict=True)
    }
    close = {
        pair
        for pair in combinations(range(120), 2)
        if bin(hashes[pair[0]] ^ hashes[pair[1]]).count("1") <= MAX_DISTANCE
    }
    assert found == close
    assert len(close) >= 60 * 6 // 9


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_bit_counts_agree_with_pythons(words: list[int]) -> None:
    assert _bit_counts(np.array(words, np.uint64)).tolist() == [bin(word).count("1") for word in words]


def test_equal_groups_keep_order_and_pass_over_what_was_not_read() -> None:
    assert equal_groups([b"a", b"", b"b", b"a", b"", b"c", b"b", b"a"]) == [(0, 3, 7), (2, 6)]
