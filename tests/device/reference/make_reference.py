"""Make the tiny reference models of the device tests and their expected outputs; needs the `train` extra.

    python -m tests.device.reference.make_reference

Writes tiny_int8.tflite, tiny_float.tflite, expected.json and newer_op.tflite beside this file (seconds). The same
TensorFlow version writes the same bytes. The device tests read them without TensorFlow. newer_op.tflite is a bare
flatbuffer with a FULLY_CONNECTED of version 12 (a dynamic-range Dense), which tflite-runtime 2.14 does not know.
version1.tflite is tiny_int8.tflite as format version 1 packed it: it can only be kept, not made again.

      image 32x32x3
          |
     conv 3x3 /2, 8 ------------------+
          |                           |
     BN + ReLU, conv 1x1 8            |
          |                           |
     BN + ReLU, conv 3x3 4            |
          |                           |
        concat 12 <-------------------+
          |
     BN + ReLU (a pre-activation BN: MUL and ADD in TFLite), conv 1x1 6, average pool 2
          |
     BN + ReLU, global average pool, dense 2 -> logits
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from cxr_compress.device.classifier import Classifier
from cxr_compress.device.modelfile import ModelInfo
from cxr_compress.device.preprocess import PreprocessSpec, preprocess
from cxr_compress.files import write_bytes, write_text
from cxr_compress.lite import pack_file
from tests.device.images import draw_image
from tests.device.reference import EXPECTED, FLOAT_MODEL, INT8_MODEL, NEWER_OP_FLATBUFFER

SPEC = PreprocessSpec(height=32, width=32)
LABELS = ("opacity", "large heart")
SEEDS = tuple(range(8))
CALIBRATION_SEEDS = range(100, 132)


def build_network() -> Any:
    """The network drawn above with seeded weights, its batch norms fitted to the calibration images."""
    from cxr_compress.keras2 import keras

    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    stem = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    branch = layers.Conv2D(8, 1, use_bias=False)(layers.ReLU()(layers.BatchNormalization(name="bn_a")(stem)))
    branch = layers.Conv2D(4, 3, padding="same", use_bias=False)(
        layers.ReLU()(layers.BatchNormalization(name="bn_b")(branch))
    )
    joined = layers.Concatenate()([stem, branch])
    pruned = layers.Conv2D(6, 1, use_bias=False)(layers.ReLU()(layers.BatchNormalization(name="bn_c")(joined)))
    pruned = layers.AveragePooling2D(2)(pruned)
    pruned = layers.ReLU()(layers.BatchNormalization(name="bn_d")(pruned))
    logits = layers.Dense(len(LABELS), name="logits")(layers.GlobalAveragePooling2D()(pruned))
    model = keras.Model(image, logits)
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            kernel = layer.kernel.numpy()
            fan_in = np.prod(kernel.shape[:-1])
            drawn = rng.normal(0.0, np.sqrt(2.0 / fan_in), kernel.shape)
            layer.set_weights([drawn, *layer.get_weights()[1:]])
    _fit_to_images(keras, model, rng)
    return model


def _fit_to_images(keras: Any, model: Any, rng: np.random.Generator) -> None:
    """Give each batch norm the statistics of its input, in order, so that the signal stays alive to the logits."""
    pictures = calibration_batch()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            values = keras.Model(model.input, layer.input).predict(pictures, verbose=0)
            mean, variance = values.mean((0, 1, 2)), values.var((0, 1, 2))
            gamma = rng.uniform(0.7, 1.3, mean.shape)
            layer.set_weights([gamma, rng.normal(0.0, 0.3, mean.shape), mean, variance])
    # Logits centered on 0 with a spread of 1.5, as a trained classifier has them.
    head = model.get_layer("logits")
    kernel, _ = head.get_weights()
    features = keras.Model(model.input, head.input).predict(pictures, verbose=0)
    kernel *= 1.5 / (features @ kernel).std(0)
    head.set_weights([kernel, -(features @ kernel).mean(0)])


def calibration_batch() -> np.ndarray:
    """float32 (32, 32, 32, 3): images that are none of the tested ones."""
    return np.stack([preprocess(draw_image(seed), SPEC) for seed in CALIBRATION_SEEDS])


def convert_network(model: Any, quantized: bool) -> bytes:
    """Plain TFLiteConverter, so that the device's reference files do not depend on the project's own exporter."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, 32, 32, 3), tf.float32, name="image")])
    def serve(image: Any) -> Any:
        return model(image, training=False)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], model)
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([picture[np.newaxis]] for picture in calibration_batch())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def convert_newer_op() -> bytes:
    """One Dense layer of 32 x 32 weights (the converter leaves tensors under 1024 elements alone), dynamic range."""
    import tensorflow as tf

    kernel = tf.constant(np.random.default_rng(11).normal(size=(32, 32)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((1, 32), tf.float32)])
    def serve(features: Any) -> Any:
        return tf.matmul(features, kernel)

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def reference_info(quant_type: str) -> ModelInfo:
    """What the reference files say about themselves."""
    return ModelInfo(
        model_name=f"reference_{quant_type}",
        labels=LABELS,
        preprocess=SPEC,
        logit_slope=(1.0, 0.8),
        logit_offset=(0.0, -0.4),
        thresholds=(0.5, 0.45),
        threshold_source="fixed by hand, for tests",
        calibration_source="fixed by hand, for tests",
        quant_type=quant_type,
        training_data="none: seeded random weights",
        synthetic=True,
    )


def main() -> None:
    """Make, check and write the reference files."""
    model = build_network()
    pictures = np.stack([preprocess(draw_image(seed), SPEC) for seed in SEEDS])
    keras_logits = model.predict(pictures, verbose=0)
    expected: dict[str, Any] = {"seeds": list(SEEDS), "keras_logits": keras_logits.tolist()}
    assert keras_logits.std(0).min() > 0.5, f"the outputs hardly depend on the input: {keras_logits.std(0)}"
    for quant_type, path in (("int8", INT8_MODEL), ("none", FLOAT_MODEL)):
        quantized = quant_type == "int8"
        write_bytes(path, pack_file(convert_network(model, quantized), reference_info(quant_type)))
        classifier = Classifier(path)
        logits = classifier.logits(pictures)
        expected[path.name] = {"logits": logits.tolist(), "output_scale": classifier.output_scale}
        error = float(np.abs(logits - keras_logits).max())
        limit = 1e-4 if not quantized else 0.35 * float(keras_logits.std(0).min())
        print(f"{path.name}: {path.stat().st_size} bytes, largest difference from Keras {error:.2g}")
        assert error < limit, f"{path.name} is {error} away from Keras, limit {limit}"
    write_bytes(NEWER_OP_FLATBUFFER, convert_newer_op())
    write_text(EXPECTED, json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
