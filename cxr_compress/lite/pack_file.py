"""From a converted flatbuffer to the file that ships, with all that it says about itself.

Standard TFLite metadata inside, for Netron, MediaPipe, the Task library and whoever else reads it, and behind the model
the archive of `device.pack_model`:

Model.metadata["TFLITE_METADATA"] -> a buffer with a flatbuffer of its own
    ModelMetadata       name, description, license
      input tensor      normalization on the scale of pixels, size and colors of the image
      output tensor     labels.txt and score_calibration.txt, which lie in the archive
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cxr_compress.device.card import render_file_card
from cxr_compress.device.modelfile import CALIBRATION_NAME, CARD_NAME, LABELS_NAME, MAX_METADATA_BYTES, pack_model
from cxr_compress.device.modelinfo import ModelInfo
from cxr_compress.device.spec import PreprocessSpec
from cxr_compress.device.verify import record
from cxr_compress.errors import ModelFileError
from cxr_compress.lite.graph.canonical import hash_model
from cxr_compress.lite.graph.flatbuffer import Graph, Tensor, graphs_of, schema, to_bytes, to_object


def pack_file(content: bytes, info: ModelInfo) -> bytes:
    """The whole file: the flatbuffer with standard metadata, and behind it the archive of `device.pack_model`.

    Adds to `info` what can be known only now: the canonical hash, what the file answers to reference images (four
    inferences), and a model card where it has none. The same flatbuffer, info and runtime give the same bytes.

    Args:
        content: the plain flatbuffer, `LiteModel.content`, or `ModelFile.content` of a file to be packed anew.
        info: what the file says about itself.

    Raises:
        ModelFileError: the flatbuffer contradicts `info`, or all metadata together exceeds 64 kB.
        RuntimeUnavailableError: no TFLite runtime here can run it.
    """
    model = to_object(content)
    graph = graphs_of(model)[0]
    known = replace(info, canonical_hash=hash_model(model), reference=None)
    known = replace(known, reference=record(content, known, step=_hidden_step(graph)))
    if not known.model_card:
        known = replace(known, model_card=render_file_card(known))
    standard = metadata_flatbuffer(graph, known)
    described = with_metadata(model, standard)
    packed = pack_model(described, known)
    spent = len(packed) - len(described) + len(standard)
    if spent > MAX_METADATA_BYTES:
        raise ModelFileError(
            f"the metadata takes {spent} bytes, at most {MAX_METADATA_BYTES} are allowed; shorten the recipe or the "
            "model card"
        )
    return packed


def _hidden_step(graph: Graph) -> float | None:
    """The value of one code behind float logits, where the last operator only turns codes into floats."""
    producers = graph.producers()
    for index in graph.outputs:
        tensor, maker = graph.tensors[index], producers.get(index)
        if tensor.is_float and len(tensor.shape) == 2 and maker is not None and maker.kind == "DEQUANTIZE":  # noqa: PLR2004
            return graph.tensors[maker.inputs[0]].scale[0]
    return None


FILE_IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"

# enum AssociatedFileType
DESCRIPTIONS, TENSOR_AXIS_LABELS, TENSOR_AXIS_SCORE_CALIBRATION = 1, 2, 4
# enum ColorSpaceType
UNKNOWN_COLOR, RGB, GRAYSCALE = 0, 1, 2
# union ContentProperties, union ProcessUnitOptions
_FEATURE, _IMAGE = 1, 2
_NORMALIZATION, _SCORE_CALIBRATION = 1, 2


class MetadataWriter:
    """Builds one metadata flatbuffer from its leaves up; each method gives the place of what it wrote."""

    def __init__(self) -> None:
        import flatbuffers

        self._builder = flatbuffers.Builder(1024)

    def associated_file(self, name: str, description: str, kind: int) -> int:
        """A file in the archive behind the model (table AssociatedFile)."""
        texts = {0: self._text(name), 1: self._text(description)}
        return self._table(5, texts, int8={2: kind})

    def image(self, color: int, width: int, height: int) -> int:
        """A tensor that holds an image of one size (table Content of ImageProperties)."""
        size = self._table(2, {}, uint32={0: width, 1: height})
        return self._content(_IMAGE, self._table(2, {1: size}, int8={0: color}))

    def feature(self) -> int:
        """A tensor that holds numbers (table Content of FeatureProperties)."""
        return self._content(_FEATURE, self._table(0, {}))

    def normalization(self, mean: Sequence[float], std: Sequence[float]) -> int:
        """(pixel - mean) / std, pixels from 0 to 255 (table ProcessUnit of NormalizationOptions)."""
        options = self._table(2, {0: self._floats(mean), 1: self._floats(std)})
        return self._table(2, {1: options}, uint8={0: _NORMALIZATION})

    def score_calibration(self) -> int:
        """Scores by the associated calibration file, from the values as they are (of ScoreCalibrationOptions)."""
        return self._table(2, {1: self._table(2, {})}, uint8={0: _SCORE_CALIBRATION})

    def stats(self, minimum: Sequence[float], maximum: Sequence[float]) -> int:
        """Between what the values of a tensor lie (table Stats)."""
        return self._table(2, {0: self._floats(maximum), 1: self._floats(minimum)})

    def tensor(
        self,
        name: str,
        description: str,
        content: int,
        *,
        process_units: Sequence[int] = (),
        stats: int = 0,
        files: Sequence[int] = (),
    ) -> int:
        """One input or output (table TensorMetadata)."""
        fields = {0: self._text(name), 1: self._text(description), 3: content, 5: stats}
        return self._table(7, {**fields, 4: self._tables(process_units), 6: self._tables(files)})

    def subgraph(self, inputs: Sequence[int], outputs: Sequence[int]) -> int:
        """The tensors that a model takes and gives, in their order there (table SubGraphMetadata)."""
        return self._table(10, {2: self._tables(inputs), 3: self._tables(outputs)})

    def finish(
        self, *, name: str, description: str, version: str, license: str, subgraph: int, files: Sequence[int]
    ) -> bytes:
        """The whole (table ModelMetadata)."""
        texts = {0: name, 1: description, 2: version, 5: license, 7: PARSER_VERSION}
        fields = {place: self._text(text) for place, text in texts.items() if text}
        root = self._table(8, {**fields, 3: self._tables([subgraph]), 6: self._tables(files)})
        self._builder.Finish(root, FILE_IDENTIFIER)
        return bytes(self._builder.Output())

    def _content(self, kind: int, properties: int) -> int:
        return self._table(3, {1: properties}, uint8={0: kind})

    def _text(self, text: str) -> int:
        return int(self._builder.CreateString(text))

    def _floats(self, values: Sequence[float]) -> int:
        self._builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self._builder.PrependFloat32(value)
        return int(self._builder.EndVector())

    def _tables(self, places: Sequence[int]) -> int:
        """A vector of tables; 0, which is no field, for none."""
        if not places:
            return 0
        self._builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self._builder.PrependUOffsetTRelative(place)
        return int(self._builder.EndVector())

    def _table(self, fields: int, places: dict[int, int], **numbers: dict[int, Any]) -> int:
        """A table of so many fields: places of what is written already, and numbers by their type."""
        self._builder.StartObject(fields)
        for number, place in places.items():
            self._builder.PrependUOffsetTRelativeSlot(number, place, 0)
        for kind, values in _sorted(numbers):
            for number, value in values.items():
                getattr(self._builder, f"Prepend{kind.capitalize()}Slot")(number, value, 0)
        return int(self._builder.EndObject())


def _sorted(numbers: dict[str, dict[int, Any]]) -> Iterable[tuple[str, dict[int, Any]]]:
    """Wide numbers first, as the builder then needs the least padding."""
    return sorted(numbers.items(), key=lambda item: item[0], reverse=True)


FIELD_NAME = "TFLITE_METADATA"
_MAX_PIXEL = 255.0
_RGB_CHANNELS = 3
_LOGITS_RANK = 2


def with_metadata(model: Any, metadata: bytes) -> bytes:
    """The flatbuffer of a `ModelT`, which is changed, with a metadata flatbuffer inside instead of one it had."""
    buffer = schema().BufferT()
    buffer.data = np.frombuffer(metadata, np.uint8)
    entries = list(model.metadata or ())
    held = _entry(model)
    if held is not None:
        model.buffers[held.buffer] = buffer
    else:
        entry = schema().MetadataT()
        entry.name, entry.buffer = FIELD_NAME, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*entries, entry]
    return to_bytes(model)


def read_metadata(content: bytes) -> bytes | None:
    """The metadata flatbuffer of a .tflite, or None where it has none.

    Raises:
        ModelFileError: no .tflite flatbuffer, or a damaged one.
    """
    model = to_object(content)
    entry = _entry(model)
    return None if entry is None else bytes(bytearray(model.buffers[entry.buffer].data))


def _entry(model: Any) -> Any:
    """The entry of the standard metadata in a `ModelT`, or None."""
    return next((entry for entry in model.metadata or () if entry.name in (FIELD_NAME, FIELD_NAME.encode())), None)


def metadata_flatbuffer(graph: Graph, info: ModelInfo) -> bytes:
    """The metadata alone.

    Args:
        graph: what `info` is about.
        info: what the file says about itself.

    Raises:
        ModelFileError: the graph does not give one logit for each finding.
    """
    writer = MetadataWriter()
    outputs = [graph.tensors[index] for index in graph.outputs]
    if not any(_is_logits(tensor, info) for tensor in outputs):
        shapes = [tensor.shape for tensor in outputs]
        raise ModelFileError(f"expected an output of shape (1, {len(info.labels)}), one logit a label; got {shapes}")
    inputs = [_input(writer, graph.tensors[index], info) for index in graph.inputs]
    given = [
        _logits(writer, tensor, info) if _is_logits(tensor, info) else _other(writer, tensor) for tensor in outputs
    ]
    return writer.finish(
        name=info.model_name,
        description=_description(info),
        version=info.canonical_hash,
        license=" ".join(part for part in (info.intended_use, _training(info), info.attribution) if part),
        subgraph=writer.subgraph(inputs, given),
        # Not the JSON: by its name in the bytes a file of ours is told from the bare flatbuffer of one.
        files=[writer.associated_file(CARD_NAME, "What the model is, is for, and is not for.", DESCRIPTIONS)],
    )


def pixel_normalization(spec: PreprocessSpec) -> tuple[list[float], list[float]]:
    """Mean and standard deviation on the scale of pixels (0 to 255), per channel or one for all where they are alike.

    A model that takes pixels normalizes them itself: 0 and 1. One for all because MediaPipe runs no model whose
    channels differ; such a one, ImageNet's for instance, it runs from files that take pixels.
    """
    if spec.input == "uint8":
        return [0.0], [1.0]
    alike = len(set(spec.mean)) == len(set(spec.std)) == 1
    pairs = list(zip(spec.mean, spec.std, strict=True))[: 1 if alike else None]
    return [mean * _MAX_PIXEL for mean, _ in pairs], [std * _MAX_PIXEL for _, std in pairs]


def _input(writer: MetadataWriter, tensor: Tensor, info: ModelInfo) -> int:
    spec = info.preprocess
    mean, std = pixel_normalization(spec)
    ends = [[(pixel - shift) / step for shift, step in zip(mean, std, strict=True)] for pixel in (0.0, _MAX_PIXEL)]
    images = (
        "gray images, the one channel repeated" if spec.color == "gray" else f"images, channels in {spec.order} order"
    )
    return writer.tensor(
        tensor.name,
        f"{images.capitalize()}; resized to {spec.height} x {spec.width} by area, aspect ratio not kept.",
        writer.image(_color(spec), spec.width, spec.height),
        process_units=[writer.normalization(mean, std)],
        stats=writer.stats(*ends),
    )


def _color(spec: PreprocessSpec) -> int:
    """The standard knows no BGR: better unknown than wrong, as readers would feed RGB."""
    if spec.order != "rgb":
        return UNKNOWN_COLOR
    return RGB if spec.input_shape[-1] == _RGB_CHANNELS else GRAYSCALE


def _logits(writer: MetadataWriter, tensor: Tensor, info: ModelInfo) -> int:
    if info.exclusive:
        # The standard knows sigmoids only: a calibration file would make its readers compute wrong probabilities.
        said = f"One logit a class; the classes exclude one another. Probabilities by one softmax of {_scores(info)}."
        return writer.tensor(tensor.name, said, writer.feature(), files=[_labels(writer)])
    thresholds = ", ".join(f"{label} {value:.4g}" for label, value in zip(info.labels, info.thresholds, strict=True))
    return writer.tensor(
        tensor.name,
        f"One logit a finding; several may be present. Probabilities by {CALIBRATION_NAME}; "
        f"positive from: {thresholds} ({info.threshold_source}).",
        writer.feature(),
        process_units=[writer.score_calibration()],
        files=[
            _labels(writer),
            writer.associated_file(
                CALIBRATION_NAME, f"Scale, slope and offset of each finding: {info.calibration_source}.",
                TENSOR_AXIS_SCORE_CALIBRATION,
            ),
        ],
    )  # fmt: skip


def _labels(writer: MetadataWriter) -> int:
    return writer.associated_file(LABELS_NAME, "The findings, in the order of the logits.", TENSOR_AXIS_LABELS)


def _scores(info: ModelInfo) -> str:
    """What one softmax is taken of, in words."""
    if set(info.logit_slope) == {1.0} and not any(info.logit_offset):
        return "the logits"
    rows = zip(info.labels, info.logit_slope, info.logit_offset, strict=True)
    return "slope * logit + offset: " + ", ".join(f"{label} {slope:.4g} {offset:.4g}" for label, slope, offset in rows)


def _other(writer: MetadataWriter, tensor: Tensor) -> int:
    return writer.tensor(
        tensor.name, "Where in the image each logit comes from: its class activation map.", writer.feature()
    )


def _is_logits(tensor: Tensor, info: ModelInfo) -> bool:
    return len(tensor.shape) == _LOGITS_RANK and tensor.shape[-1] == len(info.labels)


def _description(info: ModelInfo) -> str:
    """A few sentences: what it finds, how it is stored, what it is for."""
    synthetic = "Trained on drawn images: its findings say nothing about patients." if info.synthetic else ""
    says = f"Classifier of {', '.join(info.labels)}; quantization {info.quant_type}."
    return " ".join(part for part in (says, synthetic, info.intended_use) if part)


def _training(info: ModelInfo) -> str:
    return f"Training data: {info.training_data}." if info.training_data else ""
