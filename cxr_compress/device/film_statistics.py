"""How bright a set of films is and how far it spreads: what tells images that were prepared in another way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_compress.errors import DataError

_FILMS = 1024  # at most; a mean over so many films is good to 1 % of their spread
_LEVELS = 256
_IMAGE_RANK = 3


@dataclass(frozen=True)
class FilmStatistics:
    """Mean and standard deviation of pixel / 255 over films, one of each per channel: one for gray, three for RGB."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or not all(0 <= n <= 1 for n in numbers):
            raise DataError(f"expected mean and std of 1 or 3 channels in [0, 1], got {self.mean} and {self.std}")

    @classmethod
    def of(cls, films: np.ndarray) -> FilmStatistics:
        """Those of uint8 films (n, height, width[, 3]), of 1024 spread evenly where there are more.

        Counted, not summed: the same films give the same bits in any order.

        Raises:
            DataError: no films, or another dtype or shape.
        """
        if films.dtype != np.uint8 or not len(films) or films.ndim not in (_IMAGE_RANK, _IMAGE_RANK + 1):
            raise DataError(f"expected uint8 films (n, height, width[, 3]), got {films.dtype} {films.shape}")
        count = min(_FILMS, len(films))
        counts = np.zeros((films.shape[3] if films.ndim > _IMAGE_RANK else 1, _LEVELS), np.int64)
        for place in range(count):
            film = films[place * len(films) // count].reshape(-1, len(counts))
            for channel in range(len(counts)):
                counts[channel] += np.bincount(film[:, channel], minlength=_LEVELS)
        levels = np.arange(_LEVELS) / 255.0
        shares = counts / counts.sum(axis=1, keepdims=True)
        mean = shares @ levels
        std = np.sqrt(np.maximum(0.0, shares @ levels**2 - mean**2))
        return cls(tuple(float(round(value, 6)) for value in mean), tuple(float(round(value, 6)) for value in std))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: Any) -> FilmStatistics:
        """Build what `to_dict` gave.

        Raises:
            DataError: something else.
        """
        try:
            return cls(*(tuple(float(value) for value in fields[name]) for name in ("mean", "std")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"expected mean and std of films, got {fields!r}") from error
