"""What compression does to groups: the group that is hurt is named, small ones are only counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.errors import DataError
from cxr_compress.evaluate import NOT_INFERIOR, WORSE, compare_groups, with_intersections
from cxr_compress.evaluate.agreement import BROKEN, TOO_FEW
from cxr_compress.evaluate.comparison import compare_models
from cxr_compress.evaluate.limits import Limits, check_limits
from cxr_compress.metrics import auroc
from tests.evaluate.compared import draw_logits, noised, score

SEX = tuple("FM"[number // 2 % 2] for number in range(1200))
AGE = tuple("unknown" if number >= 1190 else ("0-14", "60+")[number // 4 % 2] for number in range(1200))


def divide(scale: float, groups: dict[str, tuple[str, ...]], margin: float = 0.03):
    labels, before, patients = draw_logits()
    after = noised(before, 0, scale, images=np.array(SEX) == "F")
    reference, candidate = score(labels, before, patients), score(labels, after, patients)
    return (labels, before, after), compare_groups(reference, candidate, groups, margin=margin)


def test_the_group_that_is_hurt_is_the_worst_by_name() -> None:
    (labels, before, after), (by_sex,) = divide(1.5, {"sex": SEX})
    worst = by_sex.worst
    assert (worst.group, worst.finding, worst.judged.verdict) == ("F", "common", WORSE)
    women = np.array(SEX) == "F"
    expected = auroc(labels[women, 0], before[women, 0]) - auroc(labels[women, 0], after[women, 0])
    assert worst.auroc_drop.value == pytest.approx(expected, abs=1e-12)
    ill = women & (labels[:, 0] == 1)
    assert worst.tpr_drop.value == pytest.approx(np.mean(before[ill, 0] >= 0) - np.mean(after[ill, 0] >= 0))
    others = [change for change in by_sex.changes if change is not worst]
    assert {(change.group, change.finding) for change in others} == {("F", "rare"), ("M", "common"), ("M", "rare")}
    assert {change.judged.verdict for change in others} == {NOT_INFERIOR}
    assert json.dumps(by_sex.to_dict(), allow_nan=False)


def test_groups_are_crossed_and_those_with_few_images_are_counted_alone() -> None:
    groups = with_intersections({"sex": SEX, "age": AGE})
    assert set(groups) == {"sex", "age", "sex and age"}
    assert set(groups["sex and age"]) == {"F and 0-14", "F and 60+", "M and 0-14", "M and 60+", "unknown"}
    _, (_, by_age, crossed) = divide(0.0, groups)
    assert by_age.too_small == {"unknown": 10}
    assert {change.group for change in crossed.changes} == set(groups["sex and age"]) - {"unknown"}
    assert all(min(change.positives, change.negatives) >= 20 for change in crossed.changes)


def test_a_limit_on_groups_breaks_what_is_beyond_and_holds_nothing_that_is_unsure() -> None:
    labels, before, patients = draw_logits()
    _, divided = divide(1.5, {"sex": SEX}, margin=1.0)
    same = score(labels, before, patients)
    comparison = compare_models("x", same, same, np.arange(1200), margin=0.02)
    assert check_limits(comparison, divided, Limits()).broken == ()
    outcome = check_limits(comparison, divided, Limits(max_group_drop=0.01))
    assert outcome.verdict == BROKEN
    assert len(outcome.broken) == 1
    assert outcome.broken[0].startswith("common in F (sex): AUROC drop ")
    _, slight = divide(0.3, {"sex": SEX}, margin=1.0)
    assert check_limits(comparison, slight, Limits(max_group_drop=0.002)).verdict == TOO_FEW


def test_a_grouping_needs_a_group_for_each_image() -> None:
    with pytest.raises(DataError, match="expected one sex per image, got 2 for 1200 images"):
        divide(0.0, {"sex": ("F", "M")})
