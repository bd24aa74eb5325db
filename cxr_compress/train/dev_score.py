"""How good the epochs of a training are, by the images of the dev patients, and which of them is the best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import summary_pb2

from cxr_compress.errors import CompressionError
from cxr_compress.files import write_text
from cxr_compress.metrics import auroc_per_finding, class_log_odds, mean_auroc
from cxr_compress.train.step import Objective


@dataclass(frozen=True)
class DevScore:
    """What the logits of the dev images are held against.

    Attributes:
        labels: (images, findings) of 0 to 1, NaN for unknown.
        findings: their names.
        objective: as in training. With "softmax" the AUROC is that of each class against the others by its probability,
            and `dev_accuracy` says how often the likeliest class was right.
        their_logits: the teacher's, for the same images; None where its probabilities are not followed.
    """

    labels: np.ndarray
    findings: tuple[str, ...]
    objective: Objective
    their_logits: np.ndarray | None = None

    def of(self, logits: np.ndarray) -> dict[str, Any]:
        """The figures of one epoch, JSON-ready: loss, AUROC of the hard labels, and with a teacher the objective.

        `dev_objective` is what training minimizes, on dev and without the term of the maps:
        `(1 - w) * loss(labels) + w * cross-entropy(teacher's probabilities)`. Where the loss is no number, there is
        nothing else to say.
        """
        loss = float(self.objective.loss(self.labels, logits))
        if not math.isfinite(loss):
            return {"dev_loss": loss}
        hard = np.where((self.labels == 0) | (self.labels == 1), self.labels, np.nan)
        exclusive = self.objective.activation == "softmax"
        ranked = class_log_odds(logits) if exclusive else logits
        per_finding = auroc_per_finding(hard, ranked)
        figures = {
            "dev_loss": loss,
            "dev_auroc": _or_none(mean_auroc(hard, ranked)),
            "auroc": {name: _or_none(value) for name, value in zip(self.findings, per_finding, strict=True)},
        }
        if exclusive:
            known = np.isfinite(hard).all(axis=1)
            right = hard[known].argmax(axis=1) == logits[known].argmax(axis=1)
            figures["dev_accuracy"] = float(right.mean()) if known.any() else None
        if self.their_logits is None:
            return figures
        theirs, ours = self.their_logits.astype(np.float64), logits.astype(np.float64)
        pull = float(self.objective.distance(theirs, ours))
        weight = self.objective.distill_weight
        return {**figures, "dev_objective": (1.0 - weight) * loss + weight * pull}


def best_epoch(history: Sequence[Mapping[str, Any]], first: int) -> int:
    """The best of the epochs from `first` on, of which 0 is the start; 0 too if none counts yet.

    With a teacher it is the one with the lowest objective: a few hundred dev images, of which a good network orders all
    but a handful of pairs rightly, hardly tell epochs apart by AUROC, while their distance to the teacher does.
    Without one it is the one with the highest AUROC, the lower loss among equals.
    """
    counted = [entry for entry in history if entry["epoch"] >= first]
    if not counted:
        return 0
    if all("dev_objective" in entry for entry in counted):
        return int(min(counted, key=lambda entry: entry["dev_objective"])["epoch"])
    best = max(counted, key=lambda entry: (_or_minus_infinity(entry["dev_auroc"]), -entry["dev_loss"]))
    return int(best["epoch"])


def _or_none(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else float(value)


def _or_minus_infinity(value: float | None) -> float:
    return -math.inf if value is None else value


_EVENTS = "events.out.tfevents."


class EpochLog:
    """Writes `log.jsonl` and TensorBoard event files (`tensorboard --logdir`) into a run's folder.

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
            CompressionError: the disk is full or the folder cannot be written.
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
