"""What people see: only columns that say something, marks where images are few, groups that fit on a screen."""

from __future__ import annotations

import numpy as np

from cxr_compress.evaluate import FLAT_COLUMNS, Evaluation, flat_rows, render_evaluation, score_groups, score_logits


def make_scored(decide: bool) -> Evaluation:
    rng = np.random.default_rng(0)
    labels = np.zeros((300, 2), np.float32)
    labels[:100, 0] = labels[:7, 1] = 1
    logits = (2 * labels + rng.normal(size=labels.shape)).astype(np.float32)
    chances = (1 / (1 + np.exp(-logits))).astype(np.float32)
    decided = {"decisions": chances >= 0.5, "thresholds": (0.5, 0.5), "probabilities": chances} if decide else {}
    patients = [f"p{image}" for image in range(300)]
    return score_logits(logits, labels, patients, ("Mass", "Hernia"), samples=30, **decided)


def test_render_evaluation_leaves_out_columns_that_say_nothing() -> None:
    plain, decided = render_evaluation(make_scored(False)), render_evaluation(make_scored(True))
    for title in ("threshold", "sensitivity", "specificity", "Brier", "ECE"):
        assert title not in plain
        assert title in decided
    assert "unknown" not in decided


def test_render_evaluation_marks_the_rare_finding_and_gives_both_means() -> None:
    scored = make_scored(True)
    lines = render_evaluation(scored).splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith(("Mass", "Hernia"))}
    assert rows["Hernia"].endswith("not enough data")
    assert not rows["Mass"].endswith("not enough data")
    assert f"{scored.scores[1].auroc.value:.3f} [" in rows["Hernia"]
    assert f"mean AUROC over findings with enough data (1): {scored.scores[0].auroc.value:.3f}" in "\n".join(lines)
    assert "mean AUROC over all defined findings (2): " in "\n".join(lines)


def test_render_evaluation_names_groups_without_enough_data_under_the_table() -> None:
    scored = make_scored(False)
    names = ["north"] * 60 + ["tiny"] * 5 + ["north"] * 235
    text = render_evaluation(scored, score_groups(scored, {"source": names}))
    heading = next(line for line in text.splitlines() if line.startswith("by source"))
    assert heading.split() == ["by", "source", "north", "within", "source"]
    assert "not enough data for any finding: tiny (5 images)" in text
    assert "- (7/295)" in text


def test_flat_rows_have_one_cell_per_column_and_none_for_what_is_undefined() -> None:
    scored = make_scored(False)
    rows = flat_rows(scored, score_groups(scored, {"sex": ["F", "M"] * 150}))
    assert all(len(row) == len(FLAT_COLUMNS) for row in rows)
    assert not any(isinstance(cell, float) and np.isnan(cell) for row in rows for cell in row)
    few = dict(zip(FLAT_COLUMNS, rows[3], strict=True))
    assert (few["group"], few["finding"], few["auroc"], few["mark"]) == ("F", "Hernia", None, "not enough data")
