"""The folder of one training run: what it was started with, its log, and a state from which it goes on.

`run.json` (what decides the result), `last.npz` (weights, optimizer and history after the last finished epoch) and
`best_epoch_N.npz` (weights alone); the log for people is in `logs`. Every file appears at once or not at all, and
`last.npz`, written last, names the best file that belongs to it: the run may be killed at any moment.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxr_compress.errors import CompressionError, ModelFileError
from cxr_compress.files import make_folder, write_bytes, write_text
from cxr_compress.models.zeros import variable_name

_ADVICE = "give the run another folder, or delete this one to start again"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        history: one entry per finished epoch, and before them that of epoch 0, the start, where it counts.
        best_epoch: of the entry that is the best so far; 0 for the start, and before there is a best one.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0

    @property
    def epochs(self) -> int:
        """How many are done."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def best(self) -> dict[str, Any] | None:
        """The entry of the best epoch; None where none counts yet."""
        return next((entry for entry in self.history if entry["epoch"] == self.best_epoch), None)


class RunFolder:
    """Reads and writes the files of one run. Nothing in them names an image or a patient."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Open the folder, or begin it if it holds no run.

        Args:
            path: is created where it is missing.
            facts: what decides the result, JSON-ready; a folder begun with other facts is refused.

        Raises:
            CompressionError: the folder holds a run that was begun with other facts, or cannot be written.
            ModelFileError: its `run.json` is damaged.
        """
        self.path = path
        facts = json.loads(json.dumps(facts))  # as it will be read back: tuples become lists
        record = path / "run.json"
        if record.exists():
            _compare(_read_facts(record), facts)
            return
        make_folder(path)
        write_text(record, json.dumps(facts, indent=2, sort_keys=True) + "\n")

    def save(self, progress: Progress, state: Mapping[str, Sequence[Any]], scored: Sequence[Any] | None = None) -> None:
        """Write the state after an epoch: the best weights first, if they are this epoch's, then all the rest.

        Args:
            progress: the epochs so far, this one included.
            state: everything needed to go on, by kind: "weights", "optimizer" and what else there is.
            scored: the weights that this epoch was scored with, where those are not `state["weights"]`.

        Raises:
            CompressionError: the disk is full or the folder cannot be written.
        """
        if progress.best_epoch == progress.epochs and progress.best:
            best = state["weights"] if scored is None else scored
            write_bytes(self._best_file(progress.best_epoch), _pack({"weights": best}))
        done = json.dumps({"best_epoch": progress.best_epoch, "history": progress.history})
        write_bytes(self.path / "last.npz", _pack(state, done))
        for old in self.path.glob("best_epoch_*.npz"):
            if old != self._best_file(progress.best_epoch):
                old.unlink()

    def restore(self, state: Mapping[str, Sequence[Any]]) -> Progress:
        """Set variables to the state after the last finished epoch; a folder without one leaves them as they are.

        Args:
            state: the variables by kind, as `save` was given them.

        Raises:
            ModelFileError: the checkpoint is damaged or belongs to another model.
        """
        file = self.path / "last.npz"
        if not file.exists():
            return Progress()
        arrays = _unpack(file)
        for kind, variables in state.items():
            _assign(variables, arrays, kind)
        done = json.loads(arrays["state"].tobytes().decode())
        return Progress(history=done["history"], best_epoch=done["best_epoch"])

    def restore_best(self, progress: Progress, weights: Sequence[Any]) -> None:
        """Set variables to the weights of the best epoch.

        Raises:
            ModelFileError: the file is missing, damaged or belongs to another model.
        """
        _assign(weights, _unpack(self._best_file(progress.best_epoch)), "weights")

    def keep_bad_batch(self, epoch: int, batch: int, image_ids: Sequence[str]) -> None:
        """Write down which images a loss that is no number came from, by the hashes of their decoded pixels."""
        entry = {"epoch": epoch, "batch": batch, "sha256_of_decoded_image": list(image_ids)}
        write_text(self.path / "nan_batch.json", json.dumps(entry, indent=2) + "\n")

    def _best_file(self, epoch: int) -> Path:
        return self.path / f"best_epoch_{epoch}.npz"


def _read_facts(record: Path) -> dict[str, Any]:
    try:
        facts = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFileError(f"run.json of the training run cannot be read: {_ADVICE}") from error
    if not isinstance(facts, dict):
        raise ModelFileError(f"run.json of the training run is no JSON object: {_ADVICE}")
    return facts


def _compare(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in sorted({*recorded, *wanted}) if recorded.get(name) != wanted.get(name)]
    if differing:
        listed = ", ".join(
            f"{name} (there {short_json(recorded.get(name))}, now {short_json(wanted.get(name))})" for name in differing
        )
        raise CompressionError(f"the folder holds a training run begun with other settings: {listed}; {_ADVICE}")


def short_json(value: Any, limit: int = 24) -> str:
    """A setting as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _keys(variables: Sequence[Any], kind: str) -> list[str]:
    return [f"{kind}.{index:04d}" for index in range(len(variables))]


def _pack(groups: Mapping[str, Sequence[Any]], state: str | None = None) -> bytes:
    arrays = {
        key: variable.numpy()
        for kind, variables in groups.items()
        for key, variable in zip(_keys(variables, kind), variables, strict=True)
    }
    if state is not None:
        arrays["state"] = np.frombuffer(state.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # plain numbers: nothing is pickled
    return buffer.getvalue()


def _unpack(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"the checkpoint {file.name} is missing or damaged: {_ADVICE}") from error


def _assign(variables: Sequence[Any], arrays: Mapping[str, np.ndarray], kind: str) -> None:
    keys = _keys(variables, kind)
    stored = [key for key in sorted(arrays) if key.startswith(f"{kind}.")]
    if stored != keys:
        raise ModelFileError(f"the checkpoint holds {len(stored)} {kind}, the model needs {len(keys)}: {_ADVICE}")
    for key, variable in zip(keys, variables, strict=True):
        if arrays[key].shape != tuple(variable.shape):
            raise ModelFileError(
                f"the checkpoint's {key} has shape {arrays[key].shape}, the model's {variable_name(variable.name)} "
                f"{tuple(variable.shape)}: {_ADVICE}"
            )
    for key, variable in zip(keys, variables, strict=True):
        variable.assign(arrays[key])
