"""Keras model or SavedModel signature -> one function of constants, with a static shape.

Why not `TFLiteConverter.from_keras_model`: it saves and reloads a SavedModel, which for DenseNet121 takes 68 to 80 s
per file. A frozen function skips that (about 3 s), and one freeze serves every quant type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, ModelFileError, UnsupportedLayerError
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, INPUT_NAME, OUTPUT_NAME

PIXELS = "pixels"
"""Scope of the operations that make whole numbers of float32 pixels."""


def other_precisions(graph_def: Any) -> tuple[str, ...]:
    """Names of the float types in a graph that are not float32, sorted."""
    found = {value for node in _nodes(graph_def) for attr in node.attr.values() for value in _types(attr)}
    return tuple(sorted(_names()[value] for value in found & set(_names())))


def in_float32(graph_def: Any) -> Any:
    """The same graph with float32 in place of float16, bfloat16 and float64; constants keep their values."""
    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    for function in changed.library.function:
        for argument in (*function.signature.input_arg, *function.signature.output_arg):
            argument.type = _as_float32(argument.type)
    for node in _nodes(changed):
        for attr in node.attr.values():
            _write_float32(attr)
    return changed


def without_pixel_casts(graph_def: Any, source: str) -> Any:
    """The same graph in which float32 pixels that are cast to uint8 and at once back to float32 stay as they are.

    Args:
        graph_def: whose uint8 pixels come from a Cast in the scope PIXELS; any other use of them keeps it.
        source: name of the float32 input.
    """
    import tensorflow as tf

    changed = type(graph_def)()
    changed.CopyFrom(graph_def)
    passing = {node.name: node for node in changed.node if node.op == "Identity"}
    for node in changed.node:
        if node.op != "Cast" or node.attr["DstT"].type != tf.float32.as_datatype_enum:
            continue
        origin = node.input[0]
        while origin in passing:
            origin = passing[origin].input[0]
        if origin == f"{PIXELS}/Cast":
            node.op = "Identity"
            node.input[:] = [source]
            for name in list(node.attr):
                del node.attr[name]
            node.attr["T"].type = tf.float32.as_datatype_enum
    return changed


def function_of(graph_def: Any, like: Any) -> Any:
    """A concrete function of a graph that was changed, with the inputs and outputs of the one it came from.

    Raises:
        UnsupportedLayerError: TensorFlow has an operation in the graph for the old types only.
    """
    from tensorflow.python.eager.wrap_function import function_from_graph_def

    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (like.inputs, like.outputs))
    try:
        made = function_from_graph_def(graph_def, inputs, outputs)
    except Exception as error:  # TensorFlow raises nearly every type here; the cause is kept, and named in the line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayerError(
            f"the model computes in another precision and cannot be taken in float32 ({reason}): export it in float32"
        ) from error
    made.graph.structured_outputs = like.graph.structured_outputs
    made.graph.structured_input_signature = like.graph.structured_input_signature
    return made


def _nodes(graph_def: Any) -> Iterator[Any]:
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def _names() -> dict[int, str]:
    """Number of every float type but float32 -> its name."""
    import tensorflow as tf

    return {kind.as_datatype_enum: kind.name for kind in (tf.float16, tf.bfloat16, tf.float64)}


def _as_float32(kind: int) -> int:
    import tensorflow as tf

    return tf.float32.as_datatype_enum if kind in _names() else kind


def _types(attr: Any) -> list[int]:
    return [attr.type, attr.tensor.dtype, *attr.list.type]


def _write_float32(attr: Any) -> None:
    import tensorflow as tf

    field = attr.WhichOneof("value")
    if field == "type":
        attr.type = _as_float32(attr.type)
    elif field == "list":
        attr.list.type[:] = [_as_float32(kind) for kind in attr.list.type]
    elif field == "tensor" and attr.tensor.dtype in _names():
        values = np.asarray(tf.make_ndarray(attr.tensor)).astype(np.float32)
        attr.tensor.CopyFrom(tf.make_tensor_proto(values, tf.float32))
    elif field == "func":
        for inner in attr.func.attr.values():
            _write_float32(inner)


# Operators that hand values on unchanged, between the one that computes the output and the output.
PASS_ON = ("Identity", "Reshape", "Squeeze", "Cast", "NoOp")
_PROBABILITIES = ("Sigmoid", "Softmax", "LogSoftmax")
_TAKEN = ("float32", "float16", "bfloat16", "float64", "uint8")
_BRIGHTEST = 255.0


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
        pixel_input: the model itself takes uint8 pixels: "image" holds values of 0 to 255, and any other preprocessing
            than the preset "raw" contradicts it.
        notes: one line each for the user, of what was taken otherwise than the model has it.
    """

    function: Any
    graph_def: Any = field(repr=False)
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    last_activation: str
    cam_shape: tuple[int, ...] = ()
    gives: str = ""
    pixel_input: bool = False
    notes: tuple[str, ...] = ()


def freeze(model: Any, batch_size: int = 1, *, input_size: int | tuple[int, int] | None = None) -> FrozenFunction:
    """Freeze a Keras model for inference, in float32; the model is not modified.

    Args:
        model: a built functional or Sequential tf_keras model with one image input (NHWC) and one output, or as
            `models.cam.with_cam` makes it.
        batch_size: of the frozen function. The device part runs batch 1.
        input_size: height and width in pixels (one number: square); needed where the model leaves them open.

    Raises:
        UnsupportedLayerError: not exactly one image input and one output, or a layer that cannot be frozen.
        CompressionError: the input size is open and not given, or contradicts the model.
    """
    # Here and not above: importing Keras loads TensorFlow, which some that import this module do not need yet.
    from cxr_compress.models.variants import in_float32 as model_in_float32

    shape = static_shape(_input_shape(model), batch_size, input_size)
    given = model.inputs[0].dtype.name
    model, note = model_in_float32(model)
    frozen = freeze_call(lambda image: model(image, training=False), shape, given)
    return replace(frozen, notes=(note, *frozen.notes)) if note else frozen


def freeze_signature(
    signature: Any, batch_size: int = 1, *, input_size: int | tuple[int, int] | None = None
) -> FrozenFunction:
    """Freeze one signature of a loaded SavedModel; arguments and errors as in `freeze`.

    A uint8 input is taken for pixels; other whole numbers are refused, because nothing says what they count.
    """
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1 or len(signature.structured_outputs) != 1:
        raise UnsupportedLayerError(
            f"expected a signature with one input and one output, got inputs {sorted(inputs)} and outputs "
            f"{sorted(signature.structured_outputs)}: export a model that takes an image and gives its logits"
        )
    (name, spec), output = next(iter(inputs.items())), next(iter(signature.structured_outputs))
    if spec.shape.rank is None:
        raise UnsupportedLayerError(
            "expected an image input (batch, height, width, channels), got one whose number of axes is left open: "
            "export the model with the shape of its images"
        )
    shape = static_shape(tuple(spec.shape), batch_size, input_size)
    return freeze_call(lambda image: signature(**{name: image})[output], shape, spec.dtype.name)


def static_shape(
    shape: tuple[int | None, ...], batch_size: int = 1, input_size: int | tuple[int, int] | None = None
) -> tuple[int, int, int, int]:
    """Fill in what an input shape (batch, height, width, channels) leaves open.

    Raises:
        UnsupportedLayerError: not the shape of an image batch.
        CompressionError: `input_size` is missing where it is needed, or contradicts the shape.
    """
    # Here and not above, as in `freeze`.
    from cxr_compress.models.original import require_image_input

    height, width, channels = require_image_input(shape, any_channels=True)
    batch = shape[0]
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


def freeze_call(call: Any, shape: tuple[int, ...], dtype: str = "float32") -> FrozenFunction:
    """Freeze anything that makes one float tensor of one, or a list of two (logits, class activation map).

    Args:
        call: a function or a model of one tensor.
        shape: of its input, batch included.
        dtype: of its input; the frozen function takes float32 and hands it on as that.

    Raises:
        UnsupportedLayerError: another dtype than float or uint8, an output that is no float, or an operation that
            cannot be frozen.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2_as_graph

    if dtype not in _TAKEN:
        raise UnsupportedLayerError(
            f"expected an input of float32 numbers or uint8 pixels, got {dtype}: export the model with one of those"
        )
    spec = tf.TensorSpec(shape, tf.float32, name=INPUT_NAME)

    def ends(image: Any) -> Any:
        made = call(_as_pixels(image) if dtype == "uint8" else tf.cast(image, dtype))
        # A dict would be put in order of its names, and the map before the logits.
        return list(made) if isinstance(made, (list, tuple)) else {OUTPUT_NAME: made}

    try:
        traced = tf.function(ends, autograph=False).get_concrete_function(spec)
        function, graph_def = convert_variables_to_constants_v2_as_graph(traced)
    except Exception as error:  # TensorFlow raises nearly every type here; the cause is kept, and named in the line
        raise UnsupportedLayerError(
            f"the model cannot be frozen: {_reason(error)}; replace layers that draw random numbers or change their "
            "size (RandomCrop: keras.layers.CenterCrop or Resizing)"
        ) from error
    function, graph_def, notes = _in_float32(function, graph_def, pixels=dtype == "uint8")
    output, *cam = function.outputs
    if output.dtype != tf.float32:
        raise UnsupportedLayerError(
            f"expected float32 logits, got {output.dtype.name}: give the model's logits instead"
        )
    shapes = [tuple(one.shape.as_list()) for one in (output, *cam)]
    return FrozenFunction(
        function,
        graph_def,
        shape,
        shapes[0],
        _last_activation(output.op),
        cam_shape=shapes[1] if cam else (),
        pixel_input=dtype == "uint8",
        notes=notes,
    )


def _as_pixels(image: Any) -> Any:
    """Float32 pixels as uint8 ones; a cast alone would make 2 of 2.9999998."""
    import tensorflow as tf

    with tf.name_scope(f"{PIXELS}/"):
        return tf.cast(tf.clip_by_value(tf.round(image), 0.0, _BRIGHTEST), tf.uint8)


def _in_float32(function: Any, graph_def: Any, *, pixels: bool) -> tuple[Any, Any, tuple[str, ...]]:
    """The function and its graph with no other precision inside, and what to say of that."""
    others = other_precisions(graph_def)
    changed = in_float32(graph_def) if others else graph_def
    if pixels:
        changed = without_pixel_casts(changed, INPUT_NAME)
    if changed is graph_def:
        return function, graph_def, ()
    notes = (
        (f"the model computes in {', '.join(others)}: it is taken in float32, with equal weights",) if others else ()
    )
    return function_of(changed, function), changed, notes


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _last_activation(operation: Any) -> str:
    while operation.type in PASS_ON and operation.inputs:
        operation = operation.inputs[0].op
    return operation.type if operation.type in _PROBABILITIES else ""


_SAVED_MODEL = "saved_model.pb"


def load_saved_model(
    folder: str | Path,
    *,
    signature_key: str = "serving_default",
    tags: tuple[str, ...] = ("serve",),
    input_size: int | tuple[int, int] | None = None,
) -> FrozenFunction:
    """Load a SavedModel (of tf_keras, Keras 3's `model.export` or plain TensorFlow) and freeze one signature.

    Raises:
        ModelFileError: missing, no SavedModel, damaged, or without that tag or signature.
        CompressionError: as `freeze`.
    """
    import tensorflow as tf

    folder = Path(folder)
    if not (folder / _SAVED_MODEL).is_file():
        raise ModelFileError(f"expected a SavedModel folder with {_SAVED_MODEL} in it, got {folder}: give that folder")
    try:
        loaded = tf.saved_model.load(str(folder), tags=list(tags))
    except Exception as error:  # as above: TensorFlow raises anything from DecodeError to KeyError
        raise ModelFileError(
            f"{folder} cannot be read as a SavedModel with tags {tags}: {_first_line(error)}"
        ) from error
    if signature_key not in loaded.signatures:
        raise ModelFileError(
            f"{folder} has no signature {signature_key!r}, it has {sorted(loaded.signatures)}: give one of those"
        )
    return freeze_signature(loaded.signatures[signature_key], input_size=input_size)


def fingerprint(path: str | Path) -> str:
    """sha256 (hexadecimal) of a file, or of the names and contents of a folder's files."""
    path = Path(path)
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no reason given'}"
