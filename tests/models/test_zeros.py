"""Zeros that stay zero through training, in the averages and the files too, and a model that is free afterwards."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.models import load_model, save_model
from cxr_compress.models.zeros import zero_masks
from cxr_compress.train import FitConfig, fit
from tests.train.images import FINDINGS, SPEC, drawn_images, small_net

TRAIN, DEV = drawn_images(48, seed=40), drawn_images(32, seed=41)
CONFIG = FitConfig(epochs=2, batch_size=16, learning_rate=1e-2, ema_decay=0.8, weight_decay=0.1)


def sparse_net(seed=0):
    """small_net with half of both convolutions' weights at 0."""
    model = small_net(seed)
    for name in ("conv1", "conv2"):
        kernel = model.get_layer(name).kernel
        values = kernel.numpy()
        kernel.assign(np.where(np.abs(values) < np.median(np.abs(values)), 0, values))
    return model


class Unchanged(keras.constraints.Constraint):
    """A constraint that a layer brought with it."""

    def __call__(self, w):
        return w


def run(folder, model, **options):
    return fit(model, TRAIN, DEV, SPEC, CONFIG, folder, findings=FINDINGS, **options)


def zeros(model):
    return {name: int(np.count_nonzero(model.get_layer(name).kernel.numpy() == 0)) for name in ("conv1", "conv2")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held")
    model = sparse_net()
    masks = zero_masks(model)
    run(folder, model, masks=masks)
    return folder, model, masks


def test_fit_masked_zeros_stay_zero_and_all_else_learns(finished, tmp_path):
    folder, model, masks = finished
    start = sparse_net()
    assert zeros(model) == zeros(start) == {"conv1": 108, "conv2": 288}
    for name, mask in masks.items():
        moved = model.get_layer(name).kernel.numpy() != start.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(moved, mask == 1)
    with np.load(folder / "last.npz") as last:
        places = [index for index, weight in enumerate(model.weights) if weight.name.startswith("conv2/kernel")]
        for kind in ("weights", "average"):
            assert np.count_nonzero(last[f"{kind}.{places[0]:04d}"] == 0) == 288
    free = sparse_net()  # the control
    run(tmp_path, free)
    assert max(zeros(free).values()) < 10


def test_fit_masked_model_is_free_after_it(finished, tmp_path):
    _, trained, _ = finished
    assert all(weight.constraint is None for weight in trained.trainable_variables)
    never_held = sparse_net()
    never_held.set_weights(trained.get_weights())
    save_model(trained, tmp_path / "held.keras")
    save_model(never_held, tmp_path / "never_held.keras")
    assert (tmp_path / "held.keras").read_bytes() == (tmp_path / "never_held.keras").read_bytes()
    loaded = load_model(tmp_path / "held.keras")
    run(tmp_path / "run", loaded)
    assert max(zeros(loaded).values()) < 10


def test_fit_masked_and_interrupted_frees_the_model_and_resumes_to_bit_equal_weights(finished, tmp_path):
    _, whole, masks = finished
    own = Unchanged()
    model = sparse_net()
    model.get_layer("conv2").kernel._constraint = own

    def stop(epoch, batch, _batches, _loss):
        if (epoch, batch) == (2, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, model, masks=masks, on_step=stop)
    assert model.get_layer("conv1").kernel.constraint is None
    assert model.get_layer("conv2").kernel.constraint is own
    again = sparse_net()
    run(tmp_path, again, masks=masks)
    np.testing.assert_array_equal(again.get_layer("conv2").kernel, whole.get_layer("conv2").kernel)
    assert zeros(again) == {"conv1": 108, "conv2": 288}


def test_fit_masks_are_part_of_what_decides_a_run(finished):
    folder, _, masks = finished
    assert set(json.loads((folder / "run.json").read_text())["masks"]) == {"conv1", "conv2"}
    with pytest.raises(CompressionError, match="begun with other settings: masks"):
        run(folder, sparse_net(), masks={"conv1": masks["conv1"]})
    with pytest.raises(CompressionError, match="begun with other settings: masks"):
        run(folder, sparse_net())


def test_fit_masks_of_another_model_are_an_error(finished, tmp_path):
    _, _, masks = finished
    with pytest.raises(CompressionError, match="small_net lost zeros that weight pruning made: 108 of 108 in conv1"):
        run(tmp_path, small_net(), masks=masks)
    with pytest.raises(CompressionError, match="were kept for conv9, small_net has no such layer"):
        run(tmp_path, sparse_net(), masks={"conv9": masks["conv1"]})
    assert not (tmp_path / "run.json").exists()
