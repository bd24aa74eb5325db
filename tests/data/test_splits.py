"""Splits as data, and their choice: by patient, stratified, seeded, and blind to the order of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.data.splits import Split, carve_dev, choose_patients, divide, join_splits
from cxr_compress.errors import DataError

# (patient, labels of three findings) per image
rows = st.lists(st.tuples(st.integers(0, 25), st.tuples(*[st.booleans()] * 3)), min_size=1, max_size=80)


def make_split(drawn: list[tuple[int, tuple[bool, ...]]]) -> Split:
    labels = np.array([flags for _, flags in drawn], np.float32)
    paths = tuple(Path(f"{index}.png") for index in range(len(drawn)))
    return Split("train", paths, labels, tuple(f"p{patient}" for patient, _ in drawn))


def stratum(split: Split, patient: str) -> int:
    """The patient's rarest finding counted in patients, the first of equally rare ones; -1 for none."""
    counts, own = [], []
    for finding in range(split.labels.shape[1]):
        sick = {p for p, flags in zip(split.patients, split.labels, strict=True) if flags[finding]}
        counts.append(len(sick))
        own.append(patient in sick)
    return min((k for k in range(len(counts)) if own[k]), key=lambda k: (counts[k], k), default=-1)


@given(rows, st.floats(0.05, 0.6), st.integers(0, 3))
def test_carve_dev_any_images_keeps_every_image_once_and_no_patient_in_both(drawn, fraction, seed) -> None:
    images = make_split(drawn)
    train, dev = carve_dev(images, fraction=fraction, seed=seed)
    assert not set(train.patients) & set(dev.patients)
    assert sorted(train.paths + dev.paths) == sorted(images.paths)
    where = {path: index for index, path in enumerate(images.paths)}
    for part in (train, dev):
        assert [where[path] for path in part.paths] == sorted(where[path] for path in part.paths)
        for index, path in enumerate(part.paths):
            np.testing.assert_array_equal(part.labels[index], images.labels[where[path]])
            assert part.patients[index] == images.patients[where[path]]


@given(rows, st.floats(0.05, 0.6), st.integers(0, 3))
def test_choose_patients_any_images_meets_the_fraction_within_one_patient_per_stratum(drawn, fraction, seed) -> None:
    images = make_split(drawn)
    chosen = choose_patients(images.patients, images.labels, fraction=fraction, seed=seed)
    strata: dict[int, list[str]] = {}
    for patient in sorted(set(images.patients)):
        strata.setdefault(stratum(images, patient), []).append(patient)
    for members in strata.values():
        share = len(chosen & set(members))
        assert abs(share - fraction * len(members)) <= 1.0
        assert len(members) == 1 or 1 <= share < len(members)


@given(rows, st.randoms(use_true_random=False))
def test_choose_patients_order_of_images_changes_nothing(drawn, shuffler) -> None:
    images = make_split(drawn)
    shuffled = list(drawn)
    shuffler.shuffle(shuffled)
    other = make_split(shuffled)
    options = {"fraction": 0.3, "seed": 7}
    assert choose_patients(images.patients, images.labels, **options) == choose_patients(
        other.patients, other.labels, **options
    )


def test_choose_patients_known_seed_gives_the_known_patients() -> None:
    """Written out, so that another platform or NumPy that chose others would be noticed."""
    patients = [f"p{number}" for number in range(20)]
    labels = np.zeros((20, 1), np.float32)
    assert choose_patients(patients, labels, fraction=0.1, seed=0) == {"p2", "p14"}
    assert choose_patients(patients, labels, fraction=0.1, seed=1) != {"p2", "p14"}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_choose_patients_fraction_out_of_range_is_refused(fraction) -> None:
    with pytest.raises(DataError, match="dev fraction between 0 and 1"):
        choose_patients(["a", "b"], np.zeros((2, 1), np.float32), fraction=fraction, seed=0)


@given(rows, st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.integers(0, 3))
def test_divide_any_images_keeps_every_image_once_and_every_patient_in_one_part(drawn, dev, test, seed) -> None:
    images = make_split(drawn)
    parts = divide(images, dev_fraction=dev, test_fraction=test, seed=seed)
    assert [part.name for part in parts] == ["train", "dev", "test"]
    assert sorted(path for part in parts for path in part.paths) == sorted(images.paths)
    everyone = [patient for part in parts for patient in set(part.patients)]
    assert len(everyone) == len(set(everyone))


@given(rows, st.integers(0, 3))
def test_divide_stratum_of_three_patients_is_in_every_part(drawn, seed) -> None:
    """So is every finding that is the rarest of at least three patients, and "no finding"."""
    images = make_split(drawn)
    parts = divide(images, dev_fraction=0.1, test_fraction=0.2, seed=seed)
    strata: dict[int, set[str]] = {}
    for patient in set(images.patients):
        strata.setdefault(stratum(images, patient), set()).add(patient)
    for finding, members in strata.items():
        if len(members) >= 3:
            assert all(members & set(part.patients) for part in parts)
            assert finding < 0 or all(part.labels[:, finding].any() for part in parts)


@given(rows, st.randoms(use_true_random=False))
def test_divide_order_of_images_changes_nothing(drawn, shuffler) -> None:
    images = make_split(drawn)
    order = list(range(len(images)))
    shuffler.shuffle(order)
    for part, other in zip(divide(images, seed=5), divide(images.take(order), seed=5), strict=True):
        assert sorted(part.paths) == sorted(other.paths)


def test_divide_known_seed_gives_the_known_patients() -> None:
    """Written out, so that another platform or NumPy that chose others would be noticed."""
    images = make_split([(number, (False, False, False)) for number in range(20)])
    _, dev, test = divide(images, dev_fraction=0.125, test_fraction=0.2, seed=0)
    assert set(test.patients) == {"p2", "p14", "p10", "p7"}
    assert set(dev.patients) == {"p4", "p15"}


@pytest.mark.parametrize(("fractions", "which"), [({"dev_fraction": 1.0}, "dev"), ({"test_fraction": 0.0}, "test")])
def test_divide_fraction_out_of_range_is_refused(fractions, which: str) -> None:
    with pytest.raises(DataError, match=f"expected a {which} fraction between 0 and 1"):
        divide(make_split([(0, (True, False, True))]), **fractions)


@given(rows, st.integers(0, 3))
def test_choose_patients_unknown_labels_count_as_absent_and_soft_ones_above_one_half_as_present(drawn, seed) -> None:
    images = make_split(drawn)
    vague = np.where(images.labels == 1, np.float32(0.7), np.float32(np.nan))
    options = {"fraction": 0.3, "seed": seed}
    assert choose_patients(images.patients, vague, **options) == choose_patients(
        images.patients, images.labels, **options
    )
    # The control: at one half and below nobody has anything, so all are one stratum.
    nobody = choose_patients(images.patients, np.minimum(images.labels, np.float32(0.5)), **options)
    assert nobody == choose_patients(images.patients, np.zeros_like(images.labels), **options)


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
