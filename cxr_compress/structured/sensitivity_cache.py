"""A measurement of sensitivity on disk: what it was measured on, and how far it is."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.device.atomic import write_text
from cxr_compress.errors import CompressionError
from cxr_compress.keras2 import keras
from cxr_compress.structured.sensitivity_curves import SENSITIVITY_FORMAT, Curve, Sensitivity

Batches = Sequence[tuple[npt.NDArray[np.float32], Any]]
Tell = Callable[[str], None]

_SECONDS_BETWEEN_LINES = 10


class Notes:
    """The curves measured so far, and the file that holds them.

    Args:
        cache: the file; None keeps them in memory alone.
        empty: what is known of the measurement before the first curve.
        tell: is told of what was found in the file, and how far the measurement is.
    """

    def __init__(self, cache: Path | None, empty: Sensitivity, tell: Tell) -> None:
        self._cache, self._empty, self._tell = cache, empty, tell
        self._told = time.monotonic()
        self.curves: dict[str, Curve] = {}
        known = _read(cache)
        if known is not None and known.key == empty.key:
            self.curves = dict(known.curves)
            tell(f"sensitivity: {len(known.curves)} groups measured before, kept")
        elif known is not None:
            tell("sensitivity: what was measured before is of another model, data or order of channels; starting anew")

    def add(self, group: str, curve: Curve, groups: int) -> None:
        """Note a group's curve, on disk too."""
        self.curves[group] = curve
        if self._cache is not None:
            write_text(self._cache, self.sensitivity(self.curves).to_json())
        if time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self._tell(f"sensitivity: {len(self.curves)} of {groups} groups measured")

    def sensitivity(self, groups: Iterable[str]) -> Sensitivity:
        """What was measured of these groups."""
        return replace(self._empty, curves={name: self.curves[name] for name in groups})


def _read(cache: Path | None) -> Sensitivity | None:
    if cache is None or not cache.exists():
        return None
    try:
        return Sensitivity.from_json(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError, CompressionError) as error:
        raise CompressionError(f"{cache}: {error}; delete the file to measure anew") from error


def model_hash(model: keras.Model) -> str:
    """A hash of a model's config and weights; the container file around them does not matter."""
    found = hashlib.sha256(json.dumps(model.get_config(), sort_keys=True, default=str).encode())
    for weight in model.get_weights():
        found.update(np.ascontiguousarray(weight).data)
    return found.hexdigest()


def measurement_key(
    settings: Mapping[str, Any], orders: Mapping[str, npt.NDArray[np.int64]], data: Batches, loss: object
) -> str:
    """A hash of everything that decides the errors.

    Args:
        settings: what else decides them, ready for JSON: the model's hash, the fractions.
        orders: by group, (channels,) which channels go first: all that matters of the scores.
        data: images and, where there is a loss, labels.
        loss: see `measure_sensitivity`.
    """
    head = {"format": SENSITIVITY_FORMAT, "loss": _describe(loss), **settings}
    found = hashlib.sha256(json.dumps(head, sort_keys=True, default=str).encode())
    for name, order in orders.items():
        found.update(name.encode() + np.ascontiguousarray(order, dtype=np.int64).tobytes())
    for images, labels in data:
        found.update(np.ascontiguousarray(images).data)
        if loss is not None:
            found.update(np.ascontiguousarray(labels).data)
    return found.hexdigest()


def _describe(loss: Any) -> str:
    if loss is None:
        return ""
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    config = loss.get_config() if hasattr(loss, "get_config") else {}
    return f"{name} {json.dumps(config, sort_keys=True, default=str)}"
