"""What the experiments that keep each row in a file share: writing and reading it, scoring, the weights of the end."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.preprocess import PreprocessSpec
from cxr_compress.files import write_bytes
from cxr_compress.keras2 import keras
from cxr_compress.train import predict_logits
from cxr_compress.train.step import make_forward

BATCH = 32
Row = dict[str, npt.NDArray[Any]]


def write_row(path: Path, row: Mapping[str, Any]) -> None:
    """One row, in one piece: a run that is stopped leaves no half of it."""
    content = io.BytesIO()
    np.savez_compressed(content, **row)
    write_bytes(path, content.getvalue())


def read_row(path: Path) -> Row:
    """All arrays of a row."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


class Scorer:
    """The logits of a model whose weights change between calls: its graph is built once."""

    def __init__(self, model: keras.Model, spec: PreprocessSpec) -> None:
        self._model, self._spec, self._forward = model, spec, make_forward(model)

    def logits(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(images, findings) float32 of uint8 images."""
        return predict_logits(self._model, images, self._spec, batch_size=BATCH, forward=self._forward)


class KeepLast(keras.callbacks.Callback):
    """Remembers the weights of the last epoch, where `fit` leaves those of the best one."""

    def on_train_end(self, logs: Any = None) -> None:
        """Take them."""
        self.weights = self.model.get_weights()
