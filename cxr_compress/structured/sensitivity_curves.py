"""What ignoring channels did to a model's output, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.errors import CompressionError

SENSITIVITY_FORMAT = 1

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One group: how the error grows with the share of its lowest-scored channels that is ignored.

    Attributes:
        channels: how many the group has.
        fractions: the shares measured, ascending, each a whole number of channels.
        errors: the error at each, as measured; noise, or channels that cancel each other, may let it fall.
    """

    channels: int
    fractions: tuple[float, ...]
    errors: tuple[float, ...]

    def error_at(self, shares: Sequence[float] | FloatVector) -> FloatVector:
        """(shares,) the error at other shares: never falling, linear between the measured ones, 0 where none goes.

        Behind the last measured share it goes on at the last slope or at the mean one, whichever is steeper: an error
        that levels off (an output that is destroyed cannot get worse) must not make the last channels look free.
        """
        at = np.asarray(shares, dtype=np.float64)
        known = np.array([0.0, *self.fractions])
        errors = np.maximum.accumulate([0.0, *self.errors])
        inside = np.interp(at, known, errors)
        if len(known) == 1:
            return np.asarray(inside)
        slope = max(errors[-1] / known[-1], (errors[-1] - errors[-2]) / (known[-1] - known[-2]))
        return np.asarray(inside + slope * np.maximum(at - known[-1], 0.0))

    def added(self, counts: Sequence[int]) -> FloatVector:
        """(steps,) the error that each step adds, when this many channels go in each."""
        return np.diff(self.error_at(np.cumsum([0, *counts]) / self.channels))


@dataclass(frozen=True)
class Sensitivity:
    """How much the output suffers where channels of each group go; see `measure_sensitivity`.

    Attributes:
        key: sha256 of model, data and scores that it was measured on.
        measure: "output", the variance of the outputs' change over their own, or "loss", its rise.
        images: how many it was measured on.
        curves: by group.
        blocks: by name of a block of layers, the error without it; empty where that was not measured.
    """

    key: str
    measure: str
    images: int
    curves: Mapping[str, Curve]
    blocks: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The measurement as JSON, one group a line."""
        head: dict[str, Any] = {
            "format": SENSITIVITY_FORMAT,
            "key": self.key,
            "measure": self.measure,
            "images": self.images,
        }
        rows = (f"  {json.dumps(name)}: {json.dumps(asdict(curve))}" for name, curve in self.curves.items())
        if self.blocks:
            head["blocks"] = dict(self.blocks)
        return json.dumps(head, indent=1)[:-2] + ',\n "groups": {\n' + ",\n".join(rows) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The inverse of `to_json`.

        Raises:
            CompressionError: not a measurement, or one of a newer format.
        """
        try:
            values = json.loads(text)
            if values["format"] != SENSITIVITY_FORMAT:
                raise CompressionError(f"expected sensitivity of format {SENSITIVITY_FORMAT}, got {values['format']}")
            curves = {name: _curve(entry) for name, entry in values["groups"].items()}
            blocks = {name: float(error) for name, error in values.get("blocks", {}).items()}
            return cls(str(values["key"]), str(values["measure"]), int(values["images"]), curves, blocks)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CompressionError(
                f"expected sensitivity measured by cxr_compress; could not read it: {error!r}"
            ) from error

    def block(self, name: str) -> float:
        """The error without a block of layers, 0 or more.

        Raises:
            CompressionError: it was not measured.
        """
        if name not in self.blocks:
            raise CompressionError(
                f"expected sensitivity of the block of layers {name!r}, got none: measure it with layers=True"
            )
        return max(0.0, self.blocks[name])

    def curve(self, group: str, channels: int) -> Curve:
        """The curve of a group.

        Raises:
            CompressionError: measured on another model.
        """
        curve = self.curves.get(group)
        if curve is None or curve.channels != channels:
            got = "nothing" if curve is None else f"{curve.channels} channels"
            raise CompressionError(
                f"expected sensitivity of the {channels} channels of group {group!r}, got {got}: measure it on this "
                "model"
            )
        return curve


def _curve(entry: Mapping[str, Any]) -> Curve:
    fractions = tuple(float(value) for value in entry["fractions"])
    errors = tuple(float(value) for value in entry["errors"])
    rising = all(low < high for low, high in zip((0.0, *fractions), fractions, strict=False))
    if len(fractions) != len(errors) or not rising or not np.isfinite(errors).all():
        raise ValueError("fractions must rise from 0, with one finite error for each")
    return Curve(int(entry["channels"]), fractions, errors)
