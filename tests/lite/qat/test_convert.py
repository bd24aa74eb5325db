"""The int8 file computes what was trained, in int8 alone, and keeps zeros and bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cxr_compress.device.preprocess import PreprocessSpec, normalize
from cxr_compress.device.runner import Runner
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat import convert_qat, prepare_qat
from tests.lite.qat import nets

layers = keras.layers

# The simulation sums up in float32 what the kernels sum up in integers. Where a sum lies within 1e-6 of the middle
# between two codes they may take different ones, about one value in some thousand; such a code more or less in one
# activation, averaged over a map and weighed among others, moves a logit by less than a code: two allow for a second.
# The hundredth is for the float32 scale that the codes are multiplied by.
PARITY_CODES = 2.01
TYPES = ["int8", "int8_float_io"]


@pytest.fixture(scope="module")
def model():
    return nets.tiny_dense()


@pytest.fixture(scope="module")
def qat(model):
    return prepare_qat(model, [nets.images(model)])


@pytest.mark.parametrize("build", nets.NETS.values(), ids=nets.NETS)
def test_convert_qat_file_equals_the_trained_model_and_other_images_do_not(build):
    model = build()
    images = nets.images(model)
    qat = prepare_qat(model, [images])
    files = convert_qat(qat, TYPES)
    wanted = qat.model(images, training=False).numpy()
    code = files["int8"].audit.outputs[0].scale

    for file in files.values():
        got = Runner(file.content)(images)
        assert np.abs(got - wanted).max() <= PARITY_CODES * code
        assert np.abs(np.roll(got, 1, axis=0) - wanted).max() > 10 * PARITY_CODES * code  # the control
    assert not files["int8"].audit.float_ops  # ends and all
    assert [tensor.dtype for tensor in files["int8"].audit.inputs + files["int8"].audit.outputs] == ["int8", "int8"]
    kinds = {op.kind: op.count for op in files["int8_float_io"].audit.ops}
    assert (kinds.get("QUANTIZE"), kinds.get("DEQUANTIZE")) == (1, 1)  # at the ends, none at a concatenation
    assert not {"MUL", "RELU", "RELU6"} & set(kinds) or build.__name__ in ("nasnet", "residual")


def test_convert_qat_gives_the_same_bytes_again(model, qat):
    assert convert_qat(qat).content == convert_qat(qat).content
    assert convert_qat(prepare_qat(model, [nets.images(model)])).content == convert_qat(qat).content


def test_convert_qat_leaves_the_model_trainable(model, qat):
    images = nets.images(model)
    before = qat.model(images, training=False).numpy()
    convert_qat(qat)
    assert np.array_equal(qat.model(images, training=False).numpy(), before)


def test_convert_qat_pixels_takes_uint8_and_normalizes(qat):
    spec = PreprocessSpec(32, 32)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32), np.uint8)
    file = convert_qat(qat, "int8_float_io", pixels=spec)

    assert (file.audit.inputs[0].dtype, file.audit.inputs[0].shape) == ("uint8", (1, 32, 32, 1))
    wanted = qat.model(normalize(images, spec), training=False).numpy()
    # One rounding more than without: the normalized pixel, which the ranges of the calibration images bound.
    code = convert_qat(qat).audit.outputs[0].scale
    got = Runner(file.content)(images[..., np.newaxis])
    assert np.abs(got - wanted).max() <= 2 * PARITY_CODES * code
    assert np.abs(got - np.roll(wanted, 1, axis=0)).max() > 0
    with pytest.raises(CompressionError, match=r"network takes \(32, 32, 3\), the preprocessing makes \(64, 64, 3\)"):
        convert_qat(qat, pixels=replace(spec, height=64, width=64))


def masked():
    model = nets.NETS["depthwise"]()
    masks = {}
    for name, axes in (("stem", 4), ("p", 4), ("sep", 4)):
        layer = model.get_layer(name)
        kernel = layer.pointwise_kernel if name == "sep" else layer.kernel
        assert kernel.shape.rank == axes
        masks[name] = (np.abs(kernel) > np.median(np.abs(kernel))).astype(np.float32)
    return prepare_qat(model, [nets.images(model)], masks=masks), masks


def test_convert_qat_masked_weights_are_zero_codes_in_the_file():
    qat, masks = masked()
    found = convert_qat(qat).audit.sparsity

    zeros = sum(int(np.count_nonzero(mask == 0)) for mask in masks.values())
    assert zeros > 0.4 * found.weights
    # Weights below half a code of their channel become zero, too: one in some hundred of normal ones.
    assert zeros <= found.zeros <= zeros + 0.05 * found.weights


def test_convert_qat_lost_zero_is_an_error_that_names_the_layer():
    qat, masks = masked()
    kernel = qat.kernels["p"][0]
    kernel.assign(np.where(masks["p"] == 0, 1.0, kernel.numpy()))
    lost = int(np.count_nonzero(masks["p"] == 0))
    with pytest.raises(CompressionError, match=f"{lost} weights of p that a mask holds at zero are not zero"):
        convert_qat(qat)


@pytest.mark.parametrize("wanted", ["fp16", [], ["int8", "int8"]])
def test_convert_qat_other_types_are_refused(qat, wanted):
    with pytest.raises(CompressionError, match="expected quant types among int8, int8_float_io, each once, got"):
        convert_qat(qat, wanted)


def test_convert_qat_open_input_size_needs_one():
    image = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(nets.nets.conv_bn(image, 4, "stem"))
    model = nets.nets.enliven(keras.Model(image, layers.Dense(2)(x)))
    qat = prepare_qat(model, [nets.lite_nets.batch(32, 16)], input_size=16)
    with pytest.raises(CompressionError, match="leaves its input size open"):
        convert_qat(qat)
    assert convert_qat(qat, input_size=24).audit.inputs[0].shape == (1, 24, 24, 3)


def test_convert_qat_tells_its_stages(qat):
    lines = []
    convert_qat(qat, TYPES, progress=lines.append)
    assert [line.split()[0] for line in lines] == ["freeze", *TYPES]
