"""A training that starts from a model of other findings, another order, or another end, and a teacher of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data import load_dataset
from cxr_compress.data.readers.phantom import PHANTOM_FINDINGS, write_phantom
from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.errors import CompressionError, DataError
from cxr_compress.keras2 import keras
from cxr_compress.models import ModelAbout, load_model, save_model
from cxr_compress.train.config import TrainingPlan
from cxr_compress.train.training import Listeners, TrainingFiles, run_training

layers = keras.layers
PLAN = TrainingPlan(
    **{"model": "net", "dataset": "phantom", "sizes": (32,), "epochs": (1,), "batch_sizes": (16,), "augment": False},
    learning_rates=(1e-9,),  # what is learnt is no matter here: the weights that are kept are
)
SPEC = PreprocessSpec.preset("unit", 32, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom set; backwards.keras names its findings in the other order, nameless.keras none of them."""
    folder = tmp_path_factory.mktemp("meaning")
    write_phantom(folder / "phantom", n_train=48, n_test=8, size=32)
    assert len(load_dataset("phantom", folder / "phantom").findings) == len(PHANTOM_FINDINGS)
    image = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(image))
    model = keras.Model(image, layers.Dense(len(PHANTOM_FINDINGS), activation="sigmoid", name="head")(x))
    about = ModelAbout(findings=tuple(reversed(PHANTOM_FINDINGS)), preprocess=SPEC)
    save_model(model, folder / "backwards.keras", about=about)
    save_model(model, folder / "nameless.keras")
    return folder


def train(folder: Path, target: Path, start: str, *, teacher: str = "", **changes: object) -> list[str]:
    log: list[str] = []
    files = TrainingFiles(
        folder / "phantom", target, folder / start, teacher_file=folder / teacher if teacher else None
    )
    run_training(dataclasses.replace(PLAN, **changes), files, Listeners(log=log.append))
    return log


def test_training_keeps_each_findings_column_by_name_and_takes_the_sigmoid_off(folder: Path, tmp_path: Path) -> None:
    log = train(folder, tmp_path, "backwards.keras")
    assert any("the sigmoid 'head' was taken off" in line for line in log)
    before, after = (
        load_model(path).get_layer("head") for path in (folder / "backwards.keras", tmp_path / "model.keras")
    )
    assert after.activation is keras.activations.linear
    # One epoch at a rate of 1e-9 moves a weight by no more than its steps times that.
    np.testing.assert_allclose(after.get_weights()[0], before.get_weights()[0][:, ::-1], atol=1e-6)
    assert np.abs(after.get_weights()[0] - before.get_weights()[0]).max() > 0.1  # the control: the old order


def test_training_from_a_file_that_says_nothing_asks(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"nameless\.keras does not say how images become its input"):
        train(folder, tmp_path / "a", "nameless.keras")
    with pytest.raises(DataError, match="does not name its 5 outputs"):
        train(folder, tmp_path / "b", "nameless.keras", preset="unit")
    log = train(folder, tmp_path / "c", "nameless.keras", preset="unit", labels=(*PHANTOM_FINDINGS[:4], "Martian"))
    assert f"note: the head is new for {PHANTOM_FINDINGS[4]}, which the model to start from does not answer" in log


def test_training_refuses_a_teacher_of_other_findings_or_other_images(folder: Path, tmp_path: Path) -> None:
    taught = {"preset": "unit", "match": "position", "distill_weight": 0.5}
    with pytest.raises(DataError, match=r"the teacher backwards\.keras takes images prepared by unit .* by tf"):
        train(folder, tmp_path / "a", "nameless.keras", teacher="backwards.keras", **{**taught, "preset": "tf"})
    about = ModelAbout(findings=("Mars", *PHANTOM_FINDINGS[1:]), preprocess=SPEC)
    save_model(load_model(folder / "nameless.keras"), folder / "other.keras", about=about)
    taught["match"] = "name"
    labels = tuple(PHANTOM_FINDINGS)
    with pytest.raises(DataError, match=rf"the teacher other\.keras does not answer {PHANTOM_FINDINGS[0]}"):
        train(folder, tmp_path / "b", "nameless.keras", teacher="other.keras", labels=labels, **taught)
