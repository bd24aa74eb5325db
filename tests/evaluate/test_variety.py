"""Whether images show what the model knows: warned of with numbers, and not by chance alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.evaluate.variety import Variety
from cxr_compress.metrics.answers import AnswerStatistics

FINDINGS = ("Mass", "Hernia")


def statistics(above, *, images: int = 128, std: float = 2.0, **features) -> AnswerStatistics:
    count = len(above)
    return AnswerStatistics(images, (0.0,) * count, (std,) * count, ((0.0,) * 5,) * count, tuple(above), **features)


def warnings(found: AnswerStatistics, known: AnswerStatistics | None = None) -> list[str]:
    return Variety(FINDINGS, found, known, "assumed").warnings()


def test_images_like_those_of_the_training_give_no_warning():
    known = statistics((0.71, 0.01), images=256, features_spread=1.0, features_rank=9.0)
    assert warnings(statistics((0.65, 0.0), features_spread=0.9, features_rank=7.0), known) == []
    # A hernia in a hundred: that 128 images show none is no wonder. The control is the finding that is common.
    (line,) = [text for text in warnings(statistics((0.0, 0.0)), known) if "threshold" in text]
    assert "Hernia" not in line
    assert line.startswith("none of 128 images is above the threshold for Mass; of its training images 71% were")


def test_a_side_that_is_hardly_there_is_named_with_numbers_and_what_to_do():
    known = statistics((0.71, 0.5), images=256)
    first, second = warnings(statistics((2 / 128, 126 / 128)), known)
    assert "only 2 of 128 images are above the threshold for Mass; of its training images 71% were" in first
    assert first.endswith("can break what they do not show; add images with the finding")
    assert "only 2 of 128 images are below the threshold for Hernia; of its training images 50% were" in second
    assert second.endswith("add images without the finding")


def test_several_findings_are_named_in_one_line_with_their_counts():
    (line,) = warnings(statistics((2 / 128, 0.0)), statistics((0.6, 0.5), images=256))
    assert line.startswith(
        "only 2, 0 of 128 images are above the threshold for Mass, Hernia in this order; of its training images 60%, "
    )


def test_a_file_that_records_nothing_leaves_absolute_grounds():
    assert warnings(statistics((3 / 128, 0.5))) == []
    (line,) = warnings(statistics((1 / 128, 0.5)))
    assert line.startswith(
        "only 1 of 128 images is above the threshold for Mass (of its training images the model file"
    )
    first, second = warnings(statistics((0.0, 1.0)))
    assert first.startswith("none of 128 images is above the threshold for Mass (of its training images the model file")
    assert second.startswith("none of 128 images is below the threshold for Hernia")


def test_logits_and_features_that_spread_less_than_in_training_are_named():
    known = statistics((0.5, 0.5), std=5.2, features_spread=10.0, features_rank=9.0)
    found = warnings(statistics((0.5, 0.5), std=2.0, features_spread=4.0, features_rank=4.0), known)
    assert "the logits for Mass spread by 2.00, on training images by 5.20" in found[0]
    assert any("the pooled features spread 4, on training images 10" in text for text in found)
    assert any("the pooled features span 4 directions, on training images 9" in text for text in found)
    assert warnings(statistics((0.5, 0.5), std=3.0, features_spread=6.0, features_rank=5.0), known) == []


def test_a_constant_answer_is_a_problem_and_all_of_it_is_kept_as_json():
    dead = Variety(FINDINGS, statistics((0.0, 0.0), std=0.0), statistics((0.5, 0.5)), "assumed")
    assert "gives each of 128 images the same answer for Mass, Hernia" in dead.problem
    assert Variety.from_dict(json.loads(json.dumps(dead.to_dict()))) == dead
    fine = Variety(FINDINGS, statistics((0.5, 0.5)), None, "assumed")
    assert fine.problem == ""
    assert "Mass 64 above the threshold, logits 0.00 +- 2.00" in fine.line()
    assert "its file records nothing of training images" in fine.line()
    assert "of 128 of its training images 50%, 50% were above" in dead.line()


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_statistics_count_the_directions_of_features(rank):
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(50, rank)))[0]
    features = random.normal(size=(4000, rank)) @ basis.T + 7
    found = AnswerStatistics.of(np.zeros((4000, 1)), np.zeros((4000, 1), bool), features)
    # Equal variances in all of them: the ratio is their number but for what 4,000 draws leave open.
    assert found.features_rank == pytest.approx(rank, rel=0.02)
    assert found.features_spread == pytest.approx(np.sqrt(rank), rel=0.03)
    few = AnswerStatistics.of(np.zeros((30, 1)), np.zeros((30, 1), bool), features[:30])
    assert few.features_rank <= 29
