"""Several candidates: where harm begins, and which images move most."""

from __future__ import annotations

import numpy as np

from cxr_compress.evaluate import compare_models, find_moved_images, find_onsets
from tests.evaluate.compared import draw_logits, noised, score

IMAGES = np.arange(1200)


def test_onset_is_the_first_candidate_that_is_worse_and_the_last_up_to_which_all_are_good() -> None:
    labels, before, patients = draw_logits()
    reference = score(labels, before, patients)
    scales = {"a": 0.0, "b": 0.1, "c": 1.0, "d": 2.0}
    candidates = {name: score(labels, noised(before, 0, scale), patients) for name, scale in scales.items()}
    ladder = [compare_models(name, reference, one, IMAGES, margin=0.02) for name, one in candidates.items()]
    common, rare = find_onsets(ladder)
    assert (common.last_good, common.first_worse) == ("b", "c")
    assert (rare.last_good, rare.first_worse) == ("d", "")
    # The control: harm first, then none, is no ladder on which anything is good from the start.
    back = find_onsets(ladder[::-1])[0]
    assert (back.last_good, back.first_worse) == ("", "d")


def test_moved_images_are_those_whose_rank_was_changed() -> None:
    labels, before, patients = draw_logits()
    chosen = np.flatnonzero(labels.sum(axis=1) == 2)[:10]
    after = before.copy()
    after[chosen, 1] = -8 - before[chosen, 1]  # from the top to the bottom
    reference, candidate = score(labels, before, patients), score(labels, after, patients)
    moved = find_moved_images(reference, [candidate], IMAGES + 5, count=10)
    assert set(moved.images) == set(chosen + 5)
    assert set(moved.worst) == {"rare"}
    assert (moved.findings_of_moved, moved.flipped.max()) == (2.0, 1)
    rest = np.delete(labels.sum(axis=1), chosen)
    assert moved.findings_of_rest == rest.mean() < 1
    assert moved.rows()[0] == ["image", "mean_rank_change", "finding", "decisions_changed", "findings"]
    assert len(moved.rows()) == 11
