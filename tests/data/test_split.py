"""A split's optional fields, soft and unknown labels, and sets of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data.splits import Split, join_splits
from cxr_compress.errors import DataError

NAN = float("nan")


def make_full(name: str = "train", images: int = 3) -> Split:
    return Split(
        name,
        tuple(Path(f"{name}{index}.png") for index in range(images)),
        np.array([[1, 0.6], [0, NAN], [NAN, 0.5]][:images], np.float32),
        tuple("abc"[:images]),
        ages=np.array([50, NAN, 7][:images]),
        sexes=("F", "M", "")[:images],
        views=("PA", "AP", "L")[:images],
        sources=("here", "there", "here")[:images],
    )


def make_arrays(count: int = 3, shape: tuple[int, ...] = (4, 4)) -> Split:
    pixels = np.arange(count * int(np.prod(shape)), dtype=np.uint8).reshape(count, *shape)
    return Split("train", (), np.zeros((count, 1)), tuple(map(str, range(count))), pixels=pixels)


def test_split_soft_and_unknown_labels_are_told_apart() -> None:
    split = make_full()
    np.testing.assert_array_equal(split.known, [[True, True], [True, False], [False, True]])
    # 0.6 counts as having it, exactly one half does not.
    np.testing.assert_array_equal(split.positive, [[True, True], [False, False], [False, False]])


@pytest.mark.parametrize("label", [-1.0, 1.01, float("inf"), -1e-3])
def test_split_label_that_is_no_probability_is_refused(label: float) -> None:
    with pytest.raises(DataError, match=r"expected labels of 0, 1, a soft target .* in dev, got .* for image 1, find"):
        Split("dev", (Path("a"), Path("b")), np.array([[NAN], [label]]), ("p", "q"))


@pytest.mark.parametrize("field", ["ages", "sexes", "views", "sources", "pixels"])
def test_split_optional_field_of_another_length_is_refused(field: str) -> None:
    values = {"ages": np.zeros(3), "pixels": np.zeros((3, 4, 4), np.uint8)}.get(field, ("", "", ""))
    with pytest.raises(DataError, match=f"expected one of {field} per image in dev, got 3 for 2 images"):
        Split("dev", (Path("a"), Path("b")), np.zeros((2, 1)), ("p", "q"), **{field: values})


def test_split_take_carries_every_field() -> None:
    taken = make_full().take([2, 0], "few")
    assert (taken.name, [path.name for path in taken.paths]) == ("few", ["train2.png", "train0.png"])
    assert (taken.patients, taken.sexes, taken.views) == (("c", "a"), ("", "F"), ("L", "PA"))
    assert taken.sources == ("here", "here")
    np.testing.assert_array_equal(taken.ages, np.array([7, 50], np.float32))
    np.testing.assert_array_equal(taken.labels, np.array([[NAN, 0.5], [1, 0.6]], np.float32))


def test_split_of_arrays_has_a_length_and_takes_pixels_along() -> None:
    split = make_arrays()
    assert len(split) == 3
    taken = split.take([2])
    assert (len(taken), taken.paths) == (1, ())
    np.testing.assert_array_equal(taken.pixels[0], split.pixels[2])


def test_split_arrays_cannot_be_changed_from_outside_and_the_callers_stay_his() -> None:
    ages = np.array([1.0, 2.0], np.float32)
    pixels = np.zeros((2, 4, 4), np.uint8)
    split = Split("dev", (), np.zeros((2, 1)), ("p", "q"), ages=ages, pixels=pixels)
    ages[0] = 99
    assert split.ages[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        split.pixels[0, 0, 0] = 1
    pixels[0, 0, 0] = 1  # no error: only the split's view is frozen


@pytest.mark.parametrize(("dtype", "shape"), [(np.float32, (2, 4, 4)), (np.uint8, (2, 16))])
def test_split_pixels_of_another_kind_are_refused(dtype, shape) -> None:
    with pytest.raises(DataError, match=r"expected pixels as uint8 \(n, h, w\) or \(n, h, w, 3\) in dev, got"):
        Split("dev", (), np.zeros((2, 1)), ("p", "q"), pixels=np.zeros(shape, dtype))


def test_join_splits_keeps_order_and_drops_a_field_that_one_lacks() -> None:
    one, other = make_full("train"), make_full("test", 2)
    both = join_splits([one, other], "all")
    assert both.name == "all"
    assert both.paths == one.paths + other.paths
    assert both.patients == one.patients + other.patients
    np.testing.assert_array_equal(both.ages, np.concatenate([one.ages, other.ages]))
    bare = Split("dev", (Path("x"),), np.zeros((1, 2)), ("p",))
    assert join_splits([one, bare], "all").ages is None
    arrays = join_splits([make_arrays(2), make_arrays(1)], "all")
    assert (len(arrays), arrays.pixels.shape) == (3, (3, 4, 4))
