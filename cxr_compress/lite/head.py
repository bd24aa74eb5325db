"""Which outputs a file has: logits, or logits and the class activation map."""

from __future__ import annotations

from typing import Any

from cxr_compress.errors import CompressionError
from cxr_compress.lite.freeze import FrozenFunction
from cxr_compress.lite.graph.flatbuffer import CAM_NAME, read_graphs
from cxr_compress.lite.int8.ranges import Ranges

# Of the range that occurred, half at either end.
_ROOM = 0.25
LOGITS, LOGITS_AND_CAM = HEADS = ("logits", "logits+cam")


def widen_map(content: bytes, ranges: Ranges) -> Ranges:
    """The same ranges with room around that of the map, where the file has one.

    One strong cell of a film that is stronger than all in the calibration films would be clipped, and the mean of the
    map no longer the logit. A step that is a quarter wider costs little: the mean averages it out.

    Args:
        content: float flatbuffer, logits first.
        ranges: tensor index -> (minimum, maximum).
    """
    outputs = read_graphs(content)[0].outputs[1:]
    rooms = {index: (high - low) * _ROOM / 2 for index, (low, high) in ranges.items() if index in outputs}
    return {**ranges, **{index: (ranges[index][0] - room, ranges[index][1] + room) for index, room in rooms.items()}}


def check_head(head: str) -> None:
    """Check which outputs are asked for, before the slow part starts.

    Raises:
        CompressionError: none of HEADS.
    """
    if head not in HEADS:
        raise CompressionError(f"expected head to be one of {', '.join(HEADS)}; got {head!r}")


def headed(model: Any, head: str) -> Any:
    """A Keras model, or a frozen one, with the outputs that `head` asks for; the model itself is not modified.

    Raises:
        CompressionError: an unknown head, the map of a frozen function that has none, or logits alone of one with it.
        UnsupportedLayerError: the model ends in another head than a map can be read from.
    """
    check_head(head)
    frozen = isinstance(model, FrozenFunction)
    names = list(getattr(model, "output_names", None) or [])
    there = bool(model.cam_shape) if frozen else names[1:] == [CAM_NAME]
    if there and head == LOGITS:
        raise CompressionError("head 'logits' asks for logits alone, the model gives a map too: ask for 'logits+cam'")
    if there or head == LOGITS:
        return model
    if frozen:
        raise CompressionError(
            "head 'logits+cam' needs a Keras model, in which the last feature map is known; got a frozen function "
            "without the map: freeze what models.cam.with_cam makes of the model"
        )
    from cxr_compress.models.cam import with_cam  # loads Keras

    return with_cam(model)
