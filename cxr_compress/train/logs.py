"""The log of a training run for people: a line of JSON per epoch, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import summary_pb2

from cxr_compress.device.atomic import write_text
from cxr_compress.errors import CompressionError

_EVENTS = "events.out.tfevents."


class EpochLog:
    """Writes ``log.jsonl`` and TensorBoard event files (``tensorboard --logdir``) into a run's folder.

    After a resume TensorBoard's file starts anew with all epochs so far, so that the curves have no gap and no fork.
    Nothing of TensorBoard need be installed to write it.
    """

    def __init__(self, folder: Path) -> None:
        """Write into a folder that exists; nothing is written before there is an epoch."""
        self._folder = folder
        self._writer: Any = None
        self._written = 0

    def write(self, history: list[dict[str, Any]]) -> None:
        """Write the epochs so far; those that were written before are not written again.

        Raises:
            CompressionError: The disk is full or the folder cannot be written.
        """
        write_text(self._folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in history))
        try:
            if self._writer is None:
                for old in self._folder.glob(f"{_EVENTS}*"):
                    old.unlink()
                self._writer = tf.summary.create_file_writer(str(self._folder))
            with self._writer.as_default():
                for entry in history[self._written :]:
                    _write_scalars(entry)
            self._writer.flush()
        except (OSError, tf.errors.OpError) as error:
            raise CompressionError(
                "the training log cannot be written (is the disk full?); finished epochs are kept: free some space "
                "and run the same command again"
            ) from error
        self._written = len(history)

    def close(self) -> None:
        """Close TensorBoard's file."""
        if self._writer is not None:
            self._writer.close()


def _write_scalars(entry: Mapping[str, Any]) -> None:
    """One epoch as points of curves; undefined numbers are left out."""
    metadata = summary_pb2.SummaryMetadata(data_class=summary_pb2.DATA_CLASS_SCALAR)
    metadata.plugin_data.plugin_name = "scalars"
    for tag, value in _scalars(entry):
        tf.summary.write(tag, tf.constant(value, tf.float32), step=entry["epoch"], metadata=metadata)


def _scalars(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{finding}", number) for finding, number in value.items() if number is not None)
        elif name != "epoch" and value is not None:
            yield name, float(value)
