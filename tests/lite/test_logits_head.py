"""Why files end in logits: an int8 sigmoid has 256 values, all 1/256 apart, and a rare finding lives below the second.

The network is small and its head is fitted to images of which 0.2 % show the finding, so that its sigmoid is what it
says: the probability. Nearly all of them are below 1/256 then, and one code is all that tells those images apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.interpreter import load_interpreter
from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite import audit, convert, freeze
from cxr_compress.lite.int8.ranges import measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from cxr_compress.metrics import auroc
from tests.lite import nets

layers = keras.layers

PREVALENCE = 0.002
IMAGES = 20_000
SIZE = 6


def pictures(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, a little brighter in one channel where the finding is: float32 (count, 6, 6, 3) and labels (count,)."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(count, np.float32)
    truth[: round(count * PREVALENCE)] = 1.0
    images = rng.normal(size=(count, SIZE, SIZE, 3)).astype(np.float32)
    # Beside the finding, brightness varies from image to image by half as much as the finding adds.
    images[..., 0] += (0.25 * rng.normal(size=count) + 0.55 * truth)[:, None, None]
    return images, truth


def network() -> Any:
    """image - conv 3x3, 8 - ReLU - mean - logit, fitted by Newton's method to the likelihood of the labels."""
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same", name="features")(image))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    model = nets.settle(keras.Model(image, layers.Dense(1, name="logits")(x)))
    images, truth = pictures(IMAGES, seed=1)
    features = keras.Model(image, x).predict(images, batch_size=2000, verbose=0).astype(np.float64)
    design = np.hstack([features, np.ones((len(features), 1))])
    weights = np.zeros(design.shape[1])
    weights[-1] = np.log(PREVALENCE)
    for _ in range(12):
        probability = 1 / (1 + np.exp(-design @ weights))
        slope = design.T @ (truth - probability) - 1e-3 * weights
        curve = (design * (probability * (1 - probability))[:, None]).T @ design + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(curve, slope)
    model.get_layer("logits").set_weights([weights[:-1, None], weights[-1:]])
    return model


@pytest.fixture(scope="module")
def logits_model() -> Any:
    return network()


def with_sigmoid(model: Any) -> Any:
    return keras.Model(model.input, layers.Activation("sigmoid", name="probability")(model.output))


def sigmoid_inside(model: Any, calibration: np.ndarray) -> bytes:
    """An int8 file that ends in its sigmoid, by the steps below `convert`, which refuses to make one."""
    content = lower(freeze(model), "none")
    return quantize(write_ranges(content, measure_ranges(content, calibration)))


def test_int8_logits_keep_the_ranking_of_a_rare_finding_and_an_int8_sigmoid_loses_it(logits_model: Any) -> None:
    images, truth = pictures(IMAGES, seed=2)
    calibration = pictures(IMAGES, seed=3)[0][::40]  # 500 images, one of them with the finding, as a clinic's would be
    exact = logits_model.predict(images, batch_size=2000, verbose=0)[:, 0]
    whole = auroc(truth, exact)
    assert 0.85 < whole < 0.97  # a model that is good and not perfect: there is something to lose

    logits = convert(logits_model, "int8", calibration=[calibration], calibration_steps=500)
    kept = auroc(truth, Runner(logits.content)(images)[:, 0])
    probabilities = sigmoid_inside(with_sigmoid(logits_model), calibration)
    codes = Runner(probabilities).stored(images)[:, 0]
    lost = auroc(truth, codes)

    assert whole - kept < 0.002
    assert whole - lost > 0.03
    # The cause, not only its effect: the scale is fixed, whatever was calibrated, and few codes are left.
    detail = load_interpreter(probabilities).interpreter.get_output_details()[0]["quantization_parameters"]
    assert detail["scales"].tolist() == [1 / 256]
    assert "LOGISTIC" in {op.kind for op in audit(probabilities).ops}
    assert np.mean(codes == codes.min()) > 0.5
    # In float the sigmoid keeps the order: it is int8 that loses it.
    float_file = lower(freeze(with_sigmoid(logits_model)), "none")
    assert abs(auroc(truth, Runner(float_file)(images)[:, 0]) - whole) < 1e-4


def test_convert_refuses_the_sigmoid_that_this_is_about(logits_model: Any) -> None:
    with pytest.raises(CompressionError, match="expected logits, but the model ends in Sigmoid"):
        convert(with_sigmoid(logits_model), "none")
