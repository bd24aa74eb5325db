"""The networks it was made for, whole: DenseNet121, a pruned small one, MobileNetV2 and ResNet50V2."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cxr_compress.device.runner import Runner
from cxr_compress.keras2 import keras
from cxr_compress.lite.qat import convert_qat, fold_batch_norms, prepare_qat
from cxr_compress.models import chexnet, tiny_chexnet
from cxr_compress.models.zeros import zero_masks
from cxr_compress.structured import Budget, analyze_channels, remove_channels, score_channels, select_channels
from tests.lite import nets

layers = keras.layers

SIZE = 64
EXACT = 1e-4  # float32 rounding of 121 layers


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def pruned():
    model = nets.settle(tiny_chexnet(2, (SIZE, SIZE, 3)))
    analysis = analyze_channels(model)
    plan = select_channels(analysis, score_channels(model, analysis, criterion="l1"), Budget(macs=0.2), round_to=8)
    return nets.settle(remove_channels(model, plan))


def application(name, **options):
    shape = (SIZE, SIZE, 3)
    build = getattr(keras.applications, name)
    return nets.settle(build(weights=None, input_shape=shape, classes=2, classifier_activation=None, **options))


def require_parity(model, qat, images):
    """Fail unless the file computes what the model in training does; in int8 alone, without a rounding too many."""
    exact = model(images).numpy()
    simulated = qat.model(images, training=False).numpy()
    assert rms(fold_batch_norms(model).model(images).numpy() - exact) < EXACT * rms(exact)
    file = convert_qat(qat, "int8_float_io")
    kinds = {op.kind: op.count for op in file.audit.ops}
    assert (kinds["QUANTIZE"], kinds["DEQUANTIZE"]) == (1, 1)
    got = Runner(file.content)(images)
    # One code more or less at the start grows on its way through a hundred layers of random weights, with a mean of
    # zero all along, until file and simulation are two draws of the same rounding noise: their difference is 1.4 times
    # that noise at most. The control, the file's outputs for other images, fails the very same bound.
    bound = 1.5 * rms(simulated - exact)
    assert rms(got - simulated) < bound
    assert rms(np.roll(got, 1, axis=0) - simulated) > bound
    return file


@pytest.mark.densenet
def test_quantized_training_of_densenet121_reaches_every_kernel_keeps_zeros_and_converts():
    model = nets.settle(chexnet(2, (SIZE, SIZE, 3)))
    for layer in model.layers[:-1]:
        if type(layer) is layers.Conv2D:
            kernel = layer.get_weights()[0]
            layer.set_weights([np.where(np.abs(kernel) < 0.5 * np.std(kernel), 0.0, kernel)])
    masks = zero_masks(model)
    assert len(masks) == 120
    images = nets.batch(16, SIZE)
    qat = prepare_qat(model, [images], masks=masks)
    before = {name: kernel.numpy() for name, (kernel, _) in qat.kernels.items()}
    optimizer = keras.optimizers.Adam(1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(qat.model(images[:4], training=True)))
    gradients = tape.gradient(loss, qat.model.trainable_variables)
    optimizer.apply_gradients(zip(gradients, qat.model.trainable_variables, strict=True))

    assert all(np.any(kernel.numpy() != before[name]) for name, (kernel, _) in qat.kernels.items())
    trained = fold_batch_norms(model).model  # without rounding
    for name, (kernel, bias) in qat.kernels.items():
        trained.get_layer(name).set_weights([values.numpy() for values in (kernel, bias) if values is not None])
    file = require_parity(trained, qat, images)
    kinds = {op.kind: op.count for op in file.audit.ops}
    # 120 convolutions, and the 62 batch norms that follow a concatenation or a pool.
    assert (kinds["CONV_2D"], kinds["DEPTHWISE_CONV_2D"]) == (120, 62)
    assert file.audit.sparsity.zeros >= sum(np.count_nonzero(mask == 0) for mask in masks.values())


@pytest.mark.densenet
@pytest.mark.parametrize(
    "build",
    [pruned, lambda: application("MobileNetV2", alpha=0.5), lambda: application("ResNet50V2")],
    ids=["pruned", "mobilenet_v2", "resnet50_v2"],
)
def test_quantized_training_of_other_networks_converts_to_what_is_trained(build):
    model = build()
    images = nets.batch(16, SIZE)
    require_parity(model, prepare_qat(model, [images]), images)
