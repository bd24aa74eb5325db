"""Which outputs the files of cxr_convert have: logits, whatever the model gave, and the map where it is asked for."""

from __future__ import annotations

import contextlib
from typing import Any

from absl import flags

from cxr_compress.cli.common import UsageError
from cxr_compress.errors import UnsupportedLayerError
from cxr_compress.lite.head import HEADS, LOGITS, LOGITS_AND_CAM, headed


def define_head_flag(values: flags.FlagValues) -> None:
    """Define it."""
    text = (
        "What the files give: logits, or logits+cam with the class activation map as a second output, which shows "
        "where in a film each logit comes from (cxr_predict --heatmap_dir); needs a Keras file."
    )
    flags.DEFINE_enum("head", LOGITS, HEADS, text, flag_values=values)


def check_head_flag(values: flags.FlagValues) -> None:
    """Find what contradicts itself before the slow part starts.

    Raises:
        UsageError: the map of a SavedModel.
    """
    if values.head == LOGITS_AND_CAM and values.keras_model_file is None:
        raise UsageError("--head=logits+cam reads the last feature map of a Keras file: give --keras_model_file")


def with_head(values: flags.FlagValues, model: Any) -> tuple[Any, str]:
    """The Keras model with the outputs that the files are to have, and what became of a sigmoid or softmax at its end.

    Raises:
        UnsupportedLayerError: the model ends in another head than a map can be read from.
    """
    from cxr_compress.models.logits_head import to_logits

    note = ""
    # What is no classifier as it knows them goes on as it is: freezing says what is wrong with it, if anything is.
    with contextlib.suppress(UnsupportedLayerError):
        model, change = to_logits(model)
        note = change.note
    return headed(model, values.head), note
