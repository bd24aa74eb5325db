"""What a trained model's file keeps: thresholds that dev chose, and what it says of its training images."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.keras2 import keras
from cxr_compress.train.observe import decide, observe, remember, statistics_of
from tests.nets import chain, conv_bn, enliven

SPEC = PreprocessSpec(12, 12)


@pytest.fixture(scope="module")
def model():
    image = keras.Input((12, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(conv_bn(conv_bn(image, 8, "a"), 6, "b"))
    return enliven(keras.Model(image, keras.layers.Dense(2, name="logits")(x)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (70, 12, 12), np.uint8)


def test_observe_gives_logits_and_what_the_head_reads(model, images):
    logits, features = observe(model, images, SPEC)
    np.testing.assert_allclose(logits, model(normalize(images, SPEC)).numpy(), atol=1e-5)
    kernel, bias = model.get_layer("logits").get_weights()
    # The mean over places is the pooled vector: float32 sums in another order.
    np.testing.assert_allclose(features @ kernel + bias, logits, atol=1e-4)


def test_observe_of_a_model_whose_head_reads_no_map_gives_logits_alone():
    head = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    logits, features = observe(head, np.zeros((3, 12, 12), np.uint8), SPEC)
    assert logits.shape == (3, 2)
    assert features is None
    assert observe(chain(), np.zeros((3, 8, 8), np.uint8), PreprocessSpec(8, 8))[1] is not None, "control"


def test_decide_undoes_weights_and_takes_the_threshold_or_the_likeliest():
    logits = np.log([[3.0, 1.0], [1.0, 4.0]])
    probabilities, decisions = decide(logits, [3.0, 1.0], [0.5, 0.6], "sigmoid")
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0.25, 0.8]], rtol=1e-6)
    assert decisions.tolist() == [[True, False], [False, True]]
    _, classes = decide(logits, [3.0, 1.0], [0.5, 0.5], "softmax")
    # log(3) - log(3) = 0 = log(1): of equally likely classes the first.
    assert classes.tolist() == [[True, False], [False, True]]


def test_remember_chooses_thresholds_on_dev_and_half_where_dev_has_one_side(model, images):
    logits, _ = observe(model, images, SPEC)
    cut = np.quantile(logits[:, 0], 0.7)
    labels = np.stack([logits[:, 0] > cut, np.zeros(70)], axis=1).astype(np.float32)
    found = remember(model, images, (images, labels), SPEC, pos_weight=np.ones(2), activation="sigmoid")
    probabilities, decisions = decide(logits, np.ones(2), found["thresholds"], "sigmoid")
    assert (decisions[:, 0] == labels[:, 0]).all()
    assert found["thresholds"][1] == 0.5
    assert found["answers"].above == pytest.approx(decisions.mean(axis=0), rel=1e-4)
    assert found["answers"].images == 70
    assert probabilities.shape == (70, 2)
    classes = remember(model, images, (images, labels), SPEC, pos_weight=np.ones(2), activation="softmax")
    assert classes["thresholds"] is None


def test_statistics_are_of_a_seeded_part_of_many_images(model, images):
    options = {"pos_weight": np.ones(2), "thresholds": (0.5, 0.5), "activation": "sigmoid", "most": 20}
    first, again, other = (statistics_of(model, images, SPEC, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again != other
    assert first.images == 20
