"""Writes the TFLite metadata flatbuffer: the tables of metadata_schema.fbs that image classifiers need.

Neither LiteRT nor TensorFlow ships that schema. The parts of it that are written here have not changed since its first
version, 1.0.0, so every reader of the standard understands them.

Source: metadata_schema.fbs of tflite-support 0.4.4 (schema version 1.5.0); field numbers are places in its tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

FILE_IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"

# enum AssociatedFileType
DESCRIPTIONS, TENSOR_AXIS_LABELS, TENSOR_AXIS_SCORE_CALIBRATION = 1, 2, 4
# enum ColorSpaceType
UNKNOWN_COLOUR, RGB, GRAYSCALE = 0, 1, 2
# union ContentProperties, union ProcessUnitOptions
_FEATURE, _IMAGE = 1, 2
_NORMALISATION, _SCORE_CALIBRATION = 1, 2


class MetadataWriter:
    """Builds one metadata flatbuffer from its leaves up; each method gives the place of what it wrote."""

    def __init__(self) -> None:
        import flatbuffers

        self._builder = flatbuffers.Builder(1024)

    def associated_file(self, name: str, description: str, kind: int) -> int:
        """A file in the archive behind the model (table AssociatedFile)."""
        texts = {0: self._text(name), 1: self._text(description)}
        return self._table(5, texts, int8={2: kind})

    def image(self, colour: int, width: int, height: int) -> int:
        """A tensor that holds an image of one size (table Content of ImageProperties)."""
        size = self._table(2, {}, uint32={0: width, 1: height})
        return self._content(_IMAGE, self._table(2, {1: size}, int8={0: colour}))

    def feature(self) -> int:
        """A tensor that holds numbers (table Content of FeatureProperties)."""
        return self._content(_FEATURE, self._table(0, {}))

    def normalisation(self, mean: Sequence[float], std: Sequence[float]) -> int:
        """(pixel - mean) / std, pixels from 0 to 255 (table ProcessUnit of NormalizationOptions)."""
        options = self._table(2, {0: self._floats(mean), 1: self._floats(std)})
        return self._table(2, {1: options}, uint8={0: _NORMALISATION})

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
        self, *, name: str, description: str, version: str, licence: str, subgraph: int, files: Sequence[int]
    ) -> bytes:
        """The whole (table ModelMetadata)."""
        texts = {0: name, 1: description, 2: version, 5: licence, 7: PARSER_VERSION}
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
