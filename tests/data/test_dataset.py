"""The checks that every set goes through, and the findings that a model and a set share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data.dataset import Dataset, ProblemKind, check_dataset, find_problems, match_findings
from cxr_compress.data.splits import Split
from cxr_compress.errors import DataError


def make_split(name: str, patients: str, positives: str = "01") -> Split:
    labels = np.array([[int(positives[i % len(positives)])] for i in range(len(patients))], np.float32).reshape(-1, 1)
    return Split(name, tuple(Path(f"{name}{i}") for i in range(len(patients))), labels, tuple(patients))


def make_dataset(**changes: Split) -> Dataset:
    splits = {"train": make_split("train", "abcd"), "dev": make_split("dev", "ef"), "test": make_split("test", "gh")}
    return Dataset("toy", ("Cough",), **{**splits, **changes}, attribution="nobody")


def test_check_dataset_sound_set_passes_unchanged() -> None:
    dataset = make_dataset()
    assert check_dataset(dataset, patient_key="the letter") is dataset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": make_split("dev", "")}, "toy: the dev split has no images"),
        (
            {"test": make_split("test", "ghaa")},
            r"1 patient\(s\) with 3 images are in both train and test \(the key is the le",
        ),
        ({"dev": make_split("dev", "ab")}, r"2 patient\(s\) with 4 images are in both train and dev"),
        ({"test": make_split("test", "gefh")}, r"2 patient\(s\) with 4 images are in both dev and test"),
        ({"dev": make_split("dev", "ef", "0")}, "with and without 'Cough' in dev, none of its 2 images is with it"),
        (
            {"test": make_split("test", "gh", "1")},
            "with and without 'Cough' in test, none of its 2 images is without it",
        ),
    ],
)
def test_check_dataset_misleading_set_is_refused(changes, message) -> None:
    with pytest.raises(DataError, match=message):
        check_dataset(make_dataset(**changes), patient_key="the letter")


def with_labels(name: str, *labels: float) -> Split:
    images = len(labels)
    paths = tuple(Path(f"{name}{i}") for i in range(images))
    return Split(name, paths, np.array(labels, np.float32)[:, None], tuple(f"{name}{i}" for i in range(images)))


NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ((1, NAN, NAN), "none of its 1 images with a known label is without it"),
        ((0.2, 0.5, NAN), "none of its 2 images with a known label is with it"),
        ((NAN, NAN), "none of its 0 images with a known label is with it"),
        ((0.6, 0.9), "none of its 2 images is without it"),
    ],
)
def test_check_dataset_needs_both_classes_among_known_labels(labels, message) -> None:
    with pytest.raises(DataError, match=message):
        check_dataset(make_dataset(dev=with_labels("dev", *labels)))


def test_check_dataset_soft_and_unknown_labels_of_both_classes_pass() -> None:
    dataset = make_dataset(dev=with_labels("dev", 0.7, 0.3, NAN))
    assert check_dataset(dataset) is dataset


def test_check_dataset_one_class_may_be_allowed_in_dev_and_test_but_not_in_train() -> None:
    poor = {"dev": make_split("dev", "ef", "0"), "test": make_split("test", "gh", "1")}
    dataset = replace(make_dataset(**poor), allow_one_class=True)
    assert check_dataset(dataset).findings == ("Cough",)
    with pytest.raises(DataError, match="with and without 'Cough' in train"):
        check_dataset(replace(dataset, train=make_split("train", "abcd", "0")))


def test_find_problems_tells_all_of_them_the_worst_first() -> None:
    dataset = make_dataset(dev=make_split("dev", ""), test=make_split("test", "gab", "0"))
    problems = list(find_problems(dataset, patient_key="the letter"))
    assert [problem.kind for problem in problems] == [
        ProblemKind.EMPTY_SPLIT,
        ProblemKind.LEAKAGE,
        ProblemKind.ONE_CLASS,
    ]
    assert problems[1].splits == ("train", "test")
    assert (problems[1].count, problems[1].names) == (2, ("a", "b"))
    with pytest.raises(DataError, match=r"^toy: the dev split has no images"):
        check_dataset(dataset)


def test_split_lengths_that_disagree_are_refused() -> None:
    with pytest.raises(DataError, match=r"got 1 images, labels of shape \(2, 1\) and 1 patients"):
        Split("train", (Path("a"),), np.zeros((2, 1), np.float32), ("p",))


def test_split_labels_cannot_be_changed_from_outside() -> None:
    mine = np.zeros((2, 1), np.float32)
    split = Split("train", (Path("a"), Path("b")), mine, ("p", "q"))
    mine[0] = 1
    assert split.labels[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0, 0] = 1


def test_split_take_keeps_images_labels_and_patients_together() -> None:
    taken = make_split("train", "abcd").take([3, 0], "few")
    assert (taken.name, taken.patients, taken.labels[:, 0].tolist()) == ("few", ("d", "a"), [1.0, 0.0])
    assert [path.name for path in taken.paths] == ["train3", "train0"]


NIH = ("Effusion", "Mass", "Pleural_Thickening")


def test_match_findings_other_order_pairs_by_name() -> None:
    found = match_findings(("Mass", "pleural thickening", "Effusion"), NIH, logits=3)
    assert found.findings == NIH
    assert found.logits == (2, 0, 1)
    assert found.labels == (0, 1, 2)
    assert not found.by_position


def test_match_findings_scores_what_both_have() -> None:
    found = match_findings(("Edema", "Mass", "Hernia", "Effusion"), NIH, logits=4)
    assert (found.findings, found.logits, found.labels) == (("Effusion", "Mass"), (3, 1), (0, 1))
    assert (found.only_model, found.only_dataset) == (("Edema", "Hernia"), ("Pleural_Thickening",))


@pytest.mark.parametrize("model", [None, ("a", "b", "c"), tuple(reversed(NIH))])
def test_match_findings_by_position_is_taken_only_when_asked_for(model) -> None:
    found = match_findings(model, NIH, logits=3, by_position=True)
    assert (found.findings, found.logits, found.by_position) == (NIH, (0, 1, 2), True)


@pytest.mark.parametrize(
    ("model", "dataset", "logits", "message"),
    [
        (("Edema", "Hernia"), NIH, 2, "no finding in common: the model has Edema, Hernia, the data set has Effusion"),
        (("Pleural Effusion", "Edema"), ("Effusion", "Mass"), 2, "no finding in common"),
        (None, NIH, 14, "does not name its 14 outputs, .* with --labels, or say with --match=position"),
        (None, NIH, 3, "does not name its 3 outputs"),
        (("opacity",), ("Pneumonia",), 1, "no finding in common: the model has opacity, the data set has Pneumonia"),
        (("Mass", "Edema"), NIH, 3, "one logit for each of the model's 2 findings, it gives 3"),
    ],
)
def test_match_findings_without_a_sure_pair_is_refused(model, dataset, logits, message) -> None:
    with pytest.raises(DataError, match=message):
        match_findings(model, dataset, logits=logits)


def test_match_findings_by_position_needs_as_many_on_both_sides() -> None:
    with pytest.raises(DataError, match="--match=position needs one finding for each of the model's 14 outputs"):
        match_findings(None, NIH, logits=14, by_position=True)
