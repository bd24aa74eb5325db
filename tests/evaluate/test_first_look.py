"""The original model on dev: what it was taken for, and whether anything should be built on it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.errors import DataError
from cxr_compress.evaluate.first_look import (
    FirstLook,
    pick_images,
    settle_preset,
    take_first_look,
    try_presets,
)

SPECS = {name: PreprocessSpec.preset(name, 8, 8) for name in ("unit", "tf", "raw")}


def images_of(count=120, *, seed=0):
    """Gray images whose brightness rises with the first finding and says nothing of the second."""
    rng = np.random.default_rng(seed)
    labels = np.stack([np.arange(count) % 2, rng.integers(0, 2, count)], axis=1).astype(np.float32)
    level = np.where(labels[:, 0] == 1, 140, 90) + rng.normal(0, 25, count)
    images = np.clip(level[:, None, None] + rng.normal(0, 5, (count, 8, 8)), 0, 255).astype(np.uint8)
    return images, labels, [f"p{row}" for row in range(count)]


def brightness(sign=1.0, columns=1):
    return lambda batch: sign * batch.mean(axis=(1, 2, 3))[:, None].repeat(columns, axis=1)


def look(answer, *, names=("A",), columns=None):
    images, labels, patients = images_of()
    wanted = labels[:, : len(names)]
    return take_first_look(
        answer, images, wanted, patients, names, spec=SPECS["unit"], assumed="findings A", columns=columns
    )


def test_look_at_a_good_model_says_what_was_assumed_and_its_auroc():
    found = look(brightness())
    assert found.problem == ""
    assert found.mean.value > 0.8
    assert found.line().startswith(f"original model: findings A; AUROC {found.mean.value:.3f} [")
    assert FirstLook.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_look_at_a_model_the_wrong_way_round_stops_and_names_the_cause():
    found = look(brightness(-1.0))
    assert found.problem.startswith("the original model ranks below chance on dev: AUROC of A 0.")
    assert "--positive" in found.problem
    assert "no better than chance" in found.line()


def test_look_at_noise_is_no_better_than_chance():
    rng = np.random.default_rng(3)
    found = look(lambda batch: rng.normal(size=(len(batch), 1)))
    assert "no better than chance on dev" in found.problem


def test_look_at_constant_or_no_numbers_is_no_better_than_chance():
    for value in (0.5, np.nan):
        found = look(lambda batch, value=value: np.full((len(batch), 1), value))
        assert found.mean.value == 0.5
        assert "no better than chance" in found.problem


def test_look_takes_the_output_that_belongs_to_a_finding():
    def two(batch):
        return np.hstack([-brightness()(batch), brightness()(batch)])

    assert look(two, columns=[1]).problem == ""
    assert look(two, columns=[0]).problem  # the control: the other output


def test_look_names_one_finding_of_several_that_is_always_the_same():
    def answer(batch):
        scores = brightness(columns=2)(batch)
        scores[:, 1] = 0.25
        return scores

    problem = look(answer, names=("A", "B")).problem
    assert problem.startswith("the original model is no better than chance: it gives every dev image the same")
    assert "same answer for B: most likely" in problem


@pytest.mark.parametrize("unsaid", [True, False])
def test_look_asks_what_logits_are_where_labels_exclude_one_another(unsaid):
    images, labels, patients = images_of()
    labels[:, 1] = 1 - labels[:, 0]

    def answer(batch):
        return np.stack([batch.mean(axis=(1, 2, 3)), -batch.mean(axis=(1, 2, 3))], axis=1)

    given = {"spec": SPECS["unit"], "assumed": "findings A, B"}
    found = take_first_look(answer, images, labels, patients, ["A", "B"], unsaid=unsaid, **given)
    assert ("has exactly one of A, B, as classes" in found.problem) == unsaid
    assert FirstLook.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_look_without_either_class_scores_nothing_and_says_so():
    images, labels, patients = images_of(6)
    labels[:, 0] = 1
    found = take_first_look(
        brightness(), images, labels[:, :1], patients, ["A"], spec=SPECS["unit"], assumed="findings A"
    )
    assert (found.findings, found.problem) == ((), "")
    assert found.line().endswith("so nothing shows whether this is right")
    assert FirstLook.from_dict(json.loads(json.dumps(found.to_dict()))).findings == ()


def near(level):
    """Knows the finding by one brightness of its input alone, in whatever scale it was trained."""
    return lambda batch: -np.abs(batch.mean(axis=(1, 2, 3)) - level)[:, None]


def test_try_presets_finds_the_one_that_fits_and_refutes_the_others():
    images, labels, patients = images_of(200)
    rng = np.random.default_rng(1)
    level = np.where(labels[:, 0] == 1, 100, rng.choice([40, 160], 200))
    images = np.clip(level[:, None, None] + rng.normal(0, 4, (200, 8, 8)), 0, 255).astype(np.uint8)
    trial = try_presets(near(100 / 255), images, labels[:, :1], patients, SPECS)
    assert (trial.best, trial.clear, trial.inverted) == ("unit", True, "")
    assert trial.refuted("raw")
    assert not trial.refuted("unit")
    assert trial.text().startswith("unit 1.000, ")
    assert settle_preset(trial, "", SPECS, None, ask="?") == (SPECS["unit"], "")
    with pytest.raises(DataError, match="--preset=raw does not fit this model: AUROC on dev"):
        settle_preset(trial, "raw", SPECS, SPECS["raw"], ask="?")
    spec, against = settle_preset(trial, "raw", SPECS, SPECS["raw"], ask="?", force=True)
    assert spec == SPECS["raw"]
    assert "--preset=raw does not fit this model" in against
    # What layers inside speak against counts less than dev, where dev is clear.
    assert settle_preset(trial, "unit", SPECS, SPECS["unit"], ask="?", doubt="twice") == (SPECS["unit"], "")
    for unclear in (None, trial):
        with pytest.raises(DataError, match=r"twice|does not fit"):
            settle_preset(unclear, "raw", SPECS, SPECS["raw"], ask="?", doubt="twice")
    assert settle_preset(None, "raw", SPECS, SPECS["raw"], ask="?", doubt="twice", force=True)[1] == "twice"
    wrong = try_presets(lambda batch: -near(100 / 255)(batch), images, labels[:, :1], patients, SPECS)
    assert wrong.inverted == "unit"
    assert not wrong.refuted("unit")  # it is not the preset that is wrong
    with pytest.raises(DataError, match="as if its outputs stood in another order"):
        settle_preset(wrong, "", SPECS, None, ask="?")


def test_try_presets_that_all_rank_alike_are_asked_about():
    images, labels, patients = images_of()
    trial = try_presets(brightness(), images, labels[:, :1], patients, SPECS)
    assert not trial.clear
    with pytest.raises(DataError, match=r"please; on dev no preset is clearly the best \(AUROC: "):
        settle_preset(trial, "", SPECS, None, ask="please")
    assert settle_preset(trial, "tf", SPECS, SPECS["tf"], ask="?") == (SPECS["tf"], "")
    with pytest.raises(DataError, match="please"):
        settle_preset(None, "", SPECS, None, ask="please")


@pytest.mark.parametrize("most", [10, 40])
def test_pick_images_takes_the_rare_first_and_never_more_than_asked(most):
    labels = np.zeros((500, 2), np.float32)
    labels[[7, 300, 450], 0] = 1
    labels[::5, 1] = 1
    chosen = pick_images(labels, 0, most)
    assert len(chosen) == len(set(chosen.tolist())) == most
    assert {7, 300, 450} & set(chosen.tolist())
    np.testing.assert_array_equal(chosen, pick_images(labels, 0, most))
