"""The rewrite without batch norms computes the same, on every wiring, and another batch norm does not."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.keras2 import keras
from cxr_compress.lite.qat import fold_batch_norms
from tests.lite.qat import nets

layers = keras.layers

# A folded kernel is one product rounded to float32 (2**-24 relative), and sums of some hundred such terms are added up
# in another order: about 1e-6 a layer, and a dozen layers. The control changes one channel of one batch norm by as
# much as channels differ, which moves the output by a hundredth of its spread or far more.
EXACT = 1e-5
CONTROL = 1e-3


def relative(one, other):
    return float(np.abs(one - other).max() / np.std(other))


def norms(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from norms(layer)
        elif isinstance(layer, layers.BatchNormalization):
            yield layer


@pytest.mark.parametrize("build", nets.NETS.values(), ids=nets.NETS)
def test_fold_batch_norms_equals_the_original_and_another_norm_does_not(build):
    model = build()
    images = nets.images(model, 8)
    wanted = model(images, training=False).numpy()
    assert relative(wanted[:1], wanted) > 1e-2  # the output depends on the image

    folded = fold_batch_norms(model).model

    assert not list(norms(folded))
    assert relative(folded(images, training=False).numpy(), wanted) < EXACT
    for norm in norms(model):
        norm.moving_mean.assign(norm.moving_mean + 1.0)
        assert relative(folded(images, training=False).numpy(), model(images, training=False).numpy()) > CONTROL, (
            norm.name
        )
        norm.moving_mean.assign(norm.moving_mean - 1.0)


def test_fold_batch_norms_leaves_the_model_untouched():
    model = nets.NETS["dense_block"]()
    before, names = model.get_weights(), [layer.name for layer in model.layers]

    folded = fold_batch_norms(model).model
    folded.set_weights([weight + 1.0 for weight in folded.get_weights()])

    assert [layer.name for layer in model.layers] == names
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_fold_batch_norms_behind_a_concatenation_becomes_a_depthwise_convolution():
    folded = fold_batch_norms(nets.NETS["tiny_dense"]())

    names = [layer.name for layer in folded.model.layers]
    own = [layer.name for layer in folded.model.layers if layer.weights and layer.name not in folded.kernels]
    # Behind the pool, behind both sums of a block's parts, behind the mean pool, behind the last concatenation.
    assert own == ["conv2_block1_0_bn", "conv2_block2_0_bn", "pool2_bn", "conv3_block1_0_bn", "bn"]
    assert all(type(folded.model.get_layer(name)) is layers.DepthwiseConv2D for name in own)
    assert {"conv1/conv", "conv2_block1_1_conv"} <= folded.kernels
    assert not {"conv1/bn", "conv2_block1_1_bn"} & set(names)  # within those


def test_fold_batch_norms_convolution_with_a_second_reader_keeps_its_result():
    image = keras.Input((8, 8, 3))
    stem = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    x = layers.Add()([stem, layers.BatchNormalization(name="norm")(stem)])
    model = nets.nets.enliven(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))))

    folded = fold_batch_norms(model)

    assert "stem" in folded.kernels
    assert folded.model.get_layer("norm").weights  # a layer of its own
    assert "norm" not in folded.kernels
    images = nets.images(model)
    assert relative(folded.model(images, training=False).numpy(), model(images, training=False).numpy()) < EXACT


def test_fold_batch_norms_zero_weights_stay_plain_zeros_under_a_negative_scale():
    model = nets.NETS["chain"]()
    conv, norm = model.get_layer("a"), next(norms(model))
    kernel = conv.get_weights()[0]
    kernel[:, :, 1] = 0.0
    conv.set_weights([kernel])
    norm.gamma.assign(-norm.gamma)

    folded = fold_batch_norms(model).model.get_layer("a").get_weights()[0]

    assert np.count_nonzero(folded == 0) == kernel[:, :, 1].size
    assert not np.signbit(folded[:, :, 1]).any()  # -0.0 would compress worse


def test_fold_batch_norms_opens_nested_models_up_under_their_paths():
    folded = fold_batch_norms(nets.NETS["nested"]()).model

    assert {"backbone/stem", "backbone/body", "hidden", "logits"} <= {layer.name for layer in folded.layers}
    assert not any(isinstance(layer, keras.Model) for layer in folded.layers)
