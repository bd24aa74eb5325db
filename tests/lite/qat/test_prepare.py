"""A model in quantization-aware training: where it starts, and that `fit` trains it as any other."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow.python.framework import config as tf_config

from cxr_compress.device.preprocess import normalize
from cxr_compress.errors import CompressionError, DataError, UnsupportedLayerError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat import prepare_qat
from cxr_compress.models.zeros import zero_masks
from cxr_compress.train import FitConfig, fit
from tests.lite.qat import nets
from tests.train.images import FINDINGS, SPEC, drawn_images

layers = keras.layers

TRAIN, DEV = drawn_images(64, seed=10), drawn_images(32, seed=11)
CALIBRATION = [normalize(TRAIN[0][:32], SPEC)]
CONFIG = FitConfig(epochs=2, batch_size=16, learning_rate=1e-3)


@pytest.fixture
def deterministic():
    tf_config.enable_op_determinism()
    yield
    tf_config.disable_op_determinism()


@pytest.fixture(scope="module")
def float_model():
    return nets.tiny_dense()


def prepared(model, **options):
    return prepare_qat(model, CALIBRATION, **options)


def trained(qat, folder, config=CONFIG, **options):
    fit(qat.model, TRAIN, DEV, SPEC, config, folder, findings=FINDINGS, **options)
    return qat


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))


@pytest.mark.parametrize("build", nets.NETS.values(), ids=nets.NETS)
def test_prepare_qat_starts_near_the_float_model_and_another_range_does_not(build):
    model = build()
    images = nets.images(model)
    qat = prepare_qat(model, [images])
    wanted = model(images, training=False).numpy()

    # Each of a dozen roundings has half a code of error in 256; together they stay within a few codes of the output.
    error = np.abs(qat.model(images, training=False).numpy() - wanted).max() / np.ptp(wanted)
    assert 0 < error < 0.06
    for variable in qat.model.weights:
        if "range_" in variable.name:
            variable.assign(variable * 0.2)
    assert np.abs(qat.model(images, training=False).numpy() - wanted).max() / np.ptp(wanted) > 0.1


def test_prepare_qat_is_deterministic_and_leaves_the_model_untouched(float_model):
    before = float_model.get_weights()
    assert equal(prepared(float_model).model, prepared(float_model).model)
    assert all(np.array_equal(a, b) for a, b in zip(before, float_model.get_weights(), strict=True))


def test_prepare_qat_keeps_all_state_in_float_weights(float_model):
    qat = prepared(float_model)
    assert {variable.dtype.name for variable in qat.model.weights} == {"float32"}  # an average can be taken of them
    outputs = qat.model(CALIBRATION[0], training=False).numpy()

    other = prepare_qat(float_model, [CALIBRATION[0] * 3.0])
    assert not np.array_equal(other.model(CALIBRATION[0], training=False).numpy(), outputs)
    other.model.set_weights(qat.model.get_weights())
    assert np.array_equal(other.model(CALIBRATION[0], training=False).numpy(), outputs)


def test_prepare_qat_frozen_layers_stay_frozen(float_model):
    model = keras.models.clone_model(float_model)
    model.set_weights(float_model.get_weights())
    for layer in model.layers[:-1]:
        layer.trainable = False
    qat = prepared(model)
    assert [variable.name.split("/")[-1] for variable in qat.model.trainable_variables] == ["kernel:0", "bias:0"]


def test_fit_trains_the_quantized_model_and_a_second_run_gives_the_same_bits(float_model, tmp_path, deterministic):
    start = prepared(float_model)
    one = trained(prepared(float_model), tmp_path / "one", teacher=float_model, config=distilling())
    other = trained(prepared(float_model), tmp_path / "other", teacher=float_model, config=distilling())

    assert equal(one.model, other.model)
    moved = {
        variable.name: not np.array_equal(variable, before)
        for variable, before in zip(one.model.weights, start.model.weights, strict=True)
    }
    # Every kernel, bias and range has moved; a range that ends at 0 stays there.
    assert all(moved[variable.name] for variable in one.model.trainable_variables)
    assert all(changed for name, changed in moved.items() if "range_high" in name)


def distilling():
    return FitConfig(epochs=2, batch_size=16, learning_rate=1e-3, distill_weight=0.5, ema_decay=0.9)


def test_fit_of_a_quantized_model_resumes_as_if_it_had_not_been_stopped(float_model, tmp_path, deterministic):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole = trained(prepared(float_model), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(prepared(float_model), tmp_path / "parts", extra_callbacks=[Stop()])
    parts = trained(prepared(float_model), tmp_path / "parts")

    assert equal(whole.model, parts.model)


def test_fit_keeps_masked_weights_at_zero_and_without_masks_does_not(float_model, tmp_path):
    model, masks = sparse(float_model)
    held = trained(prepared(model, masks=masks), tmp_path / "held", config=distilling(), teacher=float_model)
    free = trained(prepared(model), tmp_path / "free")

    assert set(held.masks) == set(masks)
    for name, mask in masks.items():
        assert not held.kernels[name][0].numpy()[mask == 0].any()
        assert free.kernels[name][0].numpy()[mask == 0].any()


def sparse(float_model):
    """A copy with half the weights of every prunable kernel zero, and its masks."""
    model = keras.models.clone_model(float_model)
    model.set_weights(float_model.get_weights())
    for layer in model.layers:
        if type(layer) is layers.Conv2D:
            kernel = layer.get_weights()[0]
            layer.set_weights([np.where(np.abs(kernel) < np.median(np.abs(kernel)), 0.0, kernel)])
    return model, zero_masks(model)


def test_prepare_qat_masks_that_fit_no_kernel_are_refused(float_model):
    with pytest.raises(CompressionError, match=r"masks for nowhere, where the model has no kernel"):
        prepared(float_model, masks={"nowhere": np.ones(3)})
    with pytest.raises(CompressionError, match=r"mask of conv2_block1_1_conv has shape \(3,\), its kernel \(1, 1, "):
        prepared(float_model, masks={"conv2_block1_1_conv": np.ones(3)})


def test_prepare_qat_refuses_what_it_cannot_take(float_model):
    with pytest.raises(DataError, match="expected at least 16 calibration images, got 8"):
        prepare_qat(float_model, [CALIBRATION[0][:8]])
    with pytest.raises(CompressionError, match="leaves its input size open"):
        prepare_qat(open_size(), CALIBRATION)
    with pytest.raises(UnsupportedLayerError, match=r"p_re_lu\w* \(PReLU"):
        prepare_qat(nets.nets.sequential(), CALIBRATION)


def test_prepare_qat_open_input_size_is_kept_open():
    qat = prepare_qat(open_size(), CALIBRATION, input_size=32)
    assert qat.model.input_shape == (None, None, None, 3)


def open_size():
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(nets.nets.conv_bn(image, 4, "stem"))
    return nets.nets.enliven(keras.Model(image, layers.Dense(2)(x)))


def test_prepare_qat_tells_its_stages(float_model):
    lines = []
    prepared(float_model, progress=lines.append)
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "batch norms folded",
        "ranges calibrated on 32 images",
        "layers wrapped",
    ]
