"""By source, sex, age and view: each group alone, pairs inside groups, and nothing where images are few."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import NIH_FINDINGS, Split
from cxr_compress.errors import DataError
from cxr_compress.evaluate import Evaluation, age_bands, groups_of, score_groups, score_logits
from cxr_compress.metrics import auroc, bootstrap_auroc, stratified_auroc

IMAGES = 400


def make_scored() -> tuple[Evaluation, dict[str, list[str]]]:
    """Two findings; the second is rare among "F"; the scores of the first know the source and little else."""
    rng = np.random.default_rng(0)
    source, sex = np.where(rng.uniform(size=IMAGES) < 0.5, "a", "b"), np.where(rng.uniform(size=IMAGES) < 0.4, "F", "M")
    first = rng.uniform(size=IMAGES) < np.where(source == "a", 0.85, 0.15)
    second = rng.uniform(size=IMAGES) < np.where(sex == "F", 0.05, 0.5)
    labels = np.stack([first, second], 1).astype(np.float32)
    logits = np.stack([3.0 * (source == "a") + rng.normal(size=IMAGES), second + rng.normal(size=IMAGES)], 1)
    labels[rng.uniform(size=labels.shape) < 0.1] = np.nan
    patients = [f"p{number // 2}" for number in range(IMAGES)]
    scored = score_logits(logits.astype(np.float32), labels, patients, ("first", "second"), samples=100)
    return scored, {"source": source.tolist(), "sex": sex.tolist()}


def test_score_groups_each_group_is_scored_as_if_alone() -> None:
    scored, names = make_scored()
    by_source, by_sex = score_groups(scored, names)
    assert [group.name for group in by_source.groups] == ["a", "b"]
    for grouping in (by_source, by_sex):
        assert sum(group.images for group in grouping.groups) == IMAGES
        for group in grouping.groups:
            images = np.array(names[grouping.by]) == group.name
            patients = np.array(scored.patients)[images]
            assert (group.images, group.patients) == (images.sum(), len(set(patients)))
            for k, score in enumerate(group.scores):
                truth = scored.labels[images, k]
                assert (score.positives, score.negatives) == ((truth == 1).sum(), (truth == 0).sum())
                if score.enough_data:
                    expected = bootstrap_auroc(truth, scored.logits[images, k], patients, samples=100)
                    assert score.auroc == expected


def test_score_groups_few_images_are_suppressed_and_left_out_of_the_mean() -> None:
    scored, names = make_scored()
    female, male = score_groups(scored, {"sex": names["sex"]})[0].groups
    assert female.scores[1].positives < 20 <= male.scores[1].positives
    assert np.isnan(female.scores[1].auroc.value)
    assert not np.isnan(male.scores[1].auroc.value)
    assert female.mean_auroc == female.scores[0].auroc
    written = female.to_dict()
    assert written["mean_over"] == ["first"]
    assert written["findings"]["second"]["mark"] == "not enough data"
    assert "mark" not in written["findings"]["first"]


def test_score_groups_within_source_unmasks_a_network_that_knows_the_source() -> None:
    scored, names = make_scored()
    within = score_groups(scored, {"source": names["source"]})[0].within
    assert auroc(scored.labels[:, 0], scored.logits[:, 0]) > 0.8
    expected = stratified_auroc(scored.labels[:, 0], scored.logits[:, 0], names["source"])[0]
    assert within.scores[0].auroc.value == expected
    assert within.scores[0].auroc.low < 0.5 < within.scores[0].auroc.high
    assert within.scores[1].auroc.low > 0.6  # the second finding is really seen


def test_score_groups_to_dict_is_json_without_nan() -> None:
    scored, names = make_scored()
    written = {grouping.by: grouping.to_dict() for grouping in score_groups(scored, names)}
    json.dumps(written, allow_nan=False)
    assert set(written["sex"]) == {"groups", "within_sex"}


def test_score_groups_wrong_number_of_names_is_refused() -> None:
    scored, _ = make_scored()
    with pytest.raises(DataError, match="expected one sex per image, got 1 for 400 images"):
        score_groups(scored, {"sex": ["F"]})


def test_age_bands_begin_at_15_40_and_60() -> None:
    assert age_bands([0, 14.9, 15, 39, 40, 59.5, 60, 101, np.nan]) == (
        *("0-14", "0-14", "15-39", "15-39", "40-59", "40-59", "60+", "60+"),
        "unknown",
    )


def test_groups_of_leaves_out_what_the_split_does_not_say() -> None:
    paths = (Path("a.png"), Path("b.png"))
    split = Split(
        "test",
        paths,
        np.zeros((2, 1), np.float32),
        ("p", "q"),
        ages=np.array([50, np.nan]),
        sexes=("F", ""),
        views=("", ""),
    )
    assert groups_of(split) == {"sex": ("F", "unknown"), "age": ("40-59", "unknown")}


def test_score_groups_of_a_real_model_on_the_mini_set(cxr_data) -> None:
    """A CheXNet scored by source on 844 images: the sources chose their images by label, so means differ."""
    import csv

    with (cxr_data / "nih_mini" / "labels.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    with (cxr_data / "nih_mini" / "chexnet_jrzech_preds_subset.csv").open() as file:
        said = {
            row["Image Index"]: [float(row[f"prob_{name}"]) for name in NIH_FINDINGS] for row in csv.DictReader(file)
        }
    chosen = [rows[name] for name in said]
    labels = np.array([[float(row[name]) for name in NIH_FINDINGS] for row in chosen], np.float32)
    patients = [row["patient_id"] for row in chosen]
    scored = score_logits(np.array(list(said.values()), np.float32), labels, patients, NIH_FINDINGS, samples=50)
    few = {score.finding for score in scored.scores if not score.enough_data}
    assert few == {name for k, name in enumerate(NIH_FINDINGS) if labels[:, k].sum() < 20}
    grouping = score_groups(scored, {"source": [row["source"] for row in chosen]})[0]
    assert {group.name for group in grouping.groups} == {row["source"] for row in chosen}
    assert 0.7 < grouping.within.mean_auroc.value < 0.95
