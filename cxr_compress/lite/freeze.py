"""Keras model or SavedModel signature -> one function of constants, with a static shape.

Why not ``TFLiteConverter.from_keras_model``: it saves and reloads a SavedModel, which for DenseNet121 takes 68 to 80 s
per file. A frozen function skips that (about 3 s), and one freeze serves every quant type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cxr_compress.errors import CompressionError, UnsupportedLayerError
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, INPUT_NAME, OUTPUT_NAME

# Operators that hand values on unchanged, between the one that computes the output and the output.
_PASS_ON = ("Identity", "Reshape", "Squeeze", "Cast", "NoOp")
_PROBABILITIES = ("Sigmoid", "Softmax", "LogSoftmax")
_IMAGE_RANK = 4


@dataclass(frozen=True)
class FrozenFunction:
    """A model in inference mode with its weights as constants; the Keras model it came from is untouched.

    Attributes:
        function: the TensorFlow concrete function, input "image" float32.
        graph_def: the same as a graph of operations, as the converter reads it.
        input_shape: (batch, height, width, channels) of a model, all known.
        output_shape: (batch, findings) for a classifier.
        last_activation: "Sigmoid", "Softmax" or "LogSoftmax" where the output is no logit any more, else "".
        cam_shape: (batch, h, w, findings) of a second output, the class activation map; () where there is none.
        gives: "logits" or "probabilities", where that was found out (`head.read_frozen_head`); "" where it was not.
    """

    function: Any
    graph_def: Any = field(repr=False)
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    last_activation: str
    cam_shape: tuple[int, ...] = ()
    gives: str = ""


def freeze(model: Any, batch_size: int = 1, *, input_size: int | tuple[int, int] | None = None) -> FrozenFunction:
    """Freeze a Keras model for inference; the model is not modified.

    Args:
        model: a built functional or Sequential tf_keras model with one image input (NHWC) and one output, or as
            `models.cam.with_cam` makes it.
        batch_size: of the frozen function. The device part runs batch 1.
        input_size: height and width in pixels (one number: square); needed where the model leaves them open.

    Raises:
        UnsupportedLayerError: not exactly one image input and one output, or the output is not float32.
        CompressionError: the input size is open and not given, or contradicts the model.
    """
    shape = static_shape(_input_shape(model), batch_size, input_size)
    return freeze_call(lambda image: model(image, training=False), shape)


def freeze_signature(
    signature: Any, batch_size: int = 1, *, input_size: int | tuple[int, int] | None = None
) -> FrozenFunction:
    """Freeze one signature of a loaded SavedModel; arguments and errors as in `freeze`."""
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1 or len(signature.structured_outputs) != 1:
        raise UnsupportedLayerError(
            f"expected a signature with one input and one output, got inputs {sorted(inputs)} and outputs "
            f"{sorted(signature.structured_outputs)}: export a model that takes an image and gives its logits"
        )
    (name, spec), output = next(iter(inputs.items())), next(iter(signature.structured_outputs))
    shape = static_shape(tuple(spec.shape), batch_size, input_size)
    return freeze_call(lambda image: signature(**{name: image})[output], shape)


def static_shape(
    shape: tuple[int | None, ...], batch_size: int = 1, input_size: int | tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """Fill in what an input shape (batch, height, width, channels) leaves open.

    Raises:
        UnsupportedLayerError: not the shape of an image batch.
        CompressionError: `input_size` is missing where it is needed, or contradicts the shape.
    """
    if len(shape) != _IMAGE_RANK or (channels := shape[3]) is None:
        raise UnsupportedLayerError(
            f"expected an image input (batch, height, width, channels), got {shape}: only image models are converted"
        )
    batch, height, width = shape[:3]
    if batch not in (None, batch_size):
        raise CompressionError(
            f"expected a model with an open batch or batch {batch_size}, got batch {batch}: rebuild its input without "
            "a fixed batch"
        )
    if input_size is not None:
        wanted = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height not in (None, wanted[0]) or width not in (None, wanted[1]):
            raise CompressionError(
                f"the model takes {height} x {width} pixels, input_size asks for {wanted[0]} x {wanted[1]}: leave "
                "input_size out, or rebuild the model for that size"
            )
        height, width = wanted
    if height is None or width is None:
        raise CompressionError(
            f"the model leaves its input size open {shape}, a .tflite has one: give input_size, for example 224"
        )
    return batch_size, height, width, channels


def _input_shape(model: Any) -> tuple[int | None, ...]:
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise UnsupportedLayerError(
            f"expected a built functional or Sequential Keras model, got {type(model).__name__} without inputs: call "
            "it on a batch first, or rebuild it with keras.Input"
        )
    if len(inputs) != 1 or (len(outputs) != 1 and list(model.output_names)[1:] != [CAM_NAME]):
        raise UnsupportedLayerError(
            f"expected one input and one output, got {len(inputs)} and {len(outputs)}: build a model of the part that "
            "takes the image and gives the logits"
        )
    return tuple(inputs[0].shape)


def freeze_call(call: Any, shape: tuple[int, ...]) -> FrozenFunction:
    """Freeze anything that makes one float32 tensor of one, or a list of two (logits, class activation map).

    `shape`: of its input, batch included.

    Raises:
        UnsupportedLayerError: the output is not float32.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

    spec = tf.TensorSpec(shape, tf.float32, name=INPUT_NAME)

    def ends(image: Any) -> Any:
        made = call(image)
        # A dict would be put in order of its names, and the map before the logits.
        return list(made) if isinstance(made, (list, tuple)) else {OUTPUT_NAME: made}

    traced = tf.function(ends, autograph=False).get_concrete_function(spec)
    function, graph_def = convert_variables_to_constants_v2_as_graph(traced)
    output, *cam = function.outputs
    if output.dtype != tf.float32:
        raise UnsupportedLayerError(
            f"expected float32 logits, got {output.dtype.name}: give the last layer dtype='float32'"
        )
    shapes = [tuple(one.shape.as_list()) for one in (output, *cam)]
    cam_shape = shapes[1] if cam else ()
    return FrozenFunction(function, graph_def, shape, shapes[0], _last_activation(output.op), cam_shape)


def _last_activation(operation: Any) -> str:
    while operation.type in _PASS_ON and operation.inputs:
        operation = operation.inputs[0].op
    return operation.type if operation.type in _PROBABILITIES else ""
