"""What is left after quantization-aware training: the same weights, plain, in the original architecture."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat import fold_batch_norms, prepare_qat, strip_qat
from cxr_compress.models.zeros import check_zeros
from tests.lite.qat import nets

layers = keras.layers

# As of folding: a few float32 roundings a layer.
EXACT = 1e-5


def perturb(qat, seed=3):
    """Change every kernel and bias by a tenth, zeros of a kernel staying zero; returns their values by layer."""
    rng = np.random.default_rng(seed)
    for name, (kernel, bias) in qat.kernels.items():
        if not (qat.origins[name].layer or qat.origins[name].norm):
            continue  # a Rescaling, which is not trained
        kernel.assign(kernel * rng.uniform(0.9, 1.1, kernel.shape))
        if bias is not None:
            bias.assign(bias + rng.normal(0, 0.03, bias.shape))
    return {name: [v.numpy() for v in pair if v is not None] for name, pair in qat.kernels.items()}


def relative(one, other):
    return float(np.abs(one - other).max() / np.std(other))


@pytest.mark.parametrize("build", nets.NETS.values(), ids=nets.NETS)
def test_strip_qat_computes_what_was_trained_in_the_original_architecture(build):
    model = build()
    images = nets.images(model)
    qat = prepare_qat(model, [images])
    changed = fold_batch_norms(model).model
    for name, weights in perturb(qat).items():
        changed.get_layer(name).set_weights(weights)
    wanted = changed(images, training=False).numpy()

    plain = strip_qat(qat)

    assert relative(plain(images, training=False).numpy(), wanted) < EXACT
    assert relative(model(images, training=False).numpy(), wanted) > 1e-2  # the control: the untrained weights
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert [w.shape for w in plain.weights] == [w.shape for w in model.weights]


def test_strip_qat_loads_with_plain_keras(tmp_path):
    model = nets.NETS["tiny_dense"]()
    images = nets.images(model)
    plain = strip_qat(prepare_qat(model, [images]))
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    assert np.array_equal(loaded(images).numpy(), plain(images, training=False).numpy())


def test_strip_qat_keeps_the_zeros_of_masks():
    model = nets.NETS["chain"]()
    layer = model.get_layer("a")
    kernel, *rest = layer.get_weights()
    masks = {"a": (np.abs(kernel) > np.median(np.abs(kernel))).astype(np.float32)}
    layer.set_weights([kernel * masks["a"], *rest])
    qat = prepare_qat(model, [nets.images(model)], masks=masks)
    perturb(qat)

    plain = strip_qat(qat)

    check_zeros(plain, masks)
    assert not np.signbit(plain.get_layer("a").get_weights()[0][masks["a"] == 0]).any()


def test_strip_qat_channel_that_its_batch_norm_had_switched_off_may_come_back():
    model = nets.NETS["chain"]()
    norm = next(layer for layer in model.layers if isinstance(layer, layers.BatchNormalization))
    norm.gamma.assign([0.0, *[1.0] * 7])
    images = nets.images(model)
    qat = prepare_qat(model, [images])
    kernel = qat.kernels["a"][0]
    kernel.assign(np.where(np.arange(8) == 0, 0.1, kernel.numpy()))
    changed = fold_batch_norms(model).model
    changed.get_layer("a").set_weights([variable.numpy() for variable in qat.kernels["a"]])

    assert relative(strip_qat(qat)(images).numpy(), changed(images, training=False).numpy()) < EXACT


def test_strip_qat_scale_that_a_norm_without_gamma_cannot_have_is_an_error_that_names_it():
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(scale=False, name="first")(image)
    x = layers.Dense(2)(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(x)))
    model = nets.nets.enliven(keras.Model(image, x))
    qat = prepare_qat(model, [nets.images(model)])
    qat.kernels["first"][0].assign(-qat.kernels["first"][0])
    with pytest.raises(CompressionError, match="the batch norm first a scale that it cannot have without gamma"):
        strip_qat(qat)
