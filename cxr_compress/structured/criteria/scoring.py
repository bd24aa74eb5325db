"""What a criterion is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_compress.keras2 import keras
from cxr_compress.structured.channels import ChannelAnalysis
from cxr_compress.structured.cost import IntArray

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoringInput:
    """What a criterion may look at.

    Attributes:
        model: only read.
        layers: by path, the model's layers, those of nested models included.
        weights: by path, the arrays of `layer.get_weights()`, of the layers that follow channels.
        analysis: the channels to score.
        batches: images, or (images, labels), for the criteria that look at data.
        loss: (labels, outputs) -> loss, for the criteria that need a gradient.
        seed: for criteria that draw.
    """

    model: keras.Model
    layers: Mapping[str, Any]
    weights: Mapping[str, list[npt.NDArray[np.float32]]]
    analysis: ChannelAnalysis
    batches: Iterable[Any] | None
    loss: Callable[[Any, Any], Any] | None
    seed: int


@dataclass(frozen=True, eq=False)
class Member:
    """What one layer has to say of some units.

    Attributes:
        units: the units, each at most once.
        values: one score per unit; higher means keep.
    """

    units: IntArray
    values: FloatVector

    @classmethod
    def of(cls, units: IntArray, values: FloatVector) -> Member:
        """A member whose channels may name a unit several times; those channels are added up."""
        unique, places = np.unique(units, return_inverse=True)
        total = np.zeros(len(unique))
        np.add.at(total, places.reshape(-1), values)
        return cls(unique, total)


Criterion = Callable[[ScoringInput], list[Member]]
