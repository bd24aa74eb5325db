"""How many weights are to go (`SparsityTarget`), and which ones stay: exactly so many, in the pattern asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np

from cxr_compress.errors import CompressionError

ThresholdUnit = Literal["absolute", "std"]
AllocationKind = Literal["layer", "global", "erk"]
ScheduleKind = Literal["constant", "polynomial", "cubic"]
Pattern = Literal["unstructured", "2:4", "block"]

THRESHOLD_UNITS: tuple[str, ...] = get_args(ThresholdUnit)
ALLOCATIONS: tuple[str, ...] = get_args(AllocationKind)
SCHEDULES: tuple[str, ...] = get_args(ScheduleKind)
PATTERNS: tuple[str, ...] = get_args(Pattern)

TWO_OF_FOUR = 0.5
_CUBIC = 3.0


@dataclass(frozen=True)
class SparsityTarget:
    """Zeros that a model's prunable kernels shall have, and the way there.

    Either `sparsity` or `threshold` decides how many weights go ("2:4" decides it by itself).

    Source: Han et al., "Learning both weights and connections" (arXiv 1506.02626), section 3.1, for thresholds in
    standard deviations; Evci et al., "Rigging the lottery" (arXiv 1911.11134), section 3, for `erk`.

    Attributes:
        sparsity: share of zeros in (0, 1), over all the kernels that the pattern can prune.
        threshold: instead of a share, every weight of smaller magnitude goes. How many they are is counted in the
            weights that pruning starts from, so that the schedule knows its end.
        threshold_unit: "absolute", or "std": times the standard deviation of the layer's kernel.
        allocation: "layer": every kernel the same share. "global": the smallest magnitudes of the whole model go;
            fewest large weights are lost, but layers whose weights are small by nature are emptied first. "erk":
            narrow layers stay denser than wide ones; costs more multiplications at the same number of zeros.
        schedule: "constant": the full target from the first mask on, TF-MOT's ConstantSparsity; "polynomial": climbs
            to it, TF-MOT's PolynomialDecay with `power`; "cubic": the same with power 3, its default.
        pattern: "unstructured"; "2:4": two zeros in every four weights in a row along the input channels, half of
            all, which GPUs with sparse tensor cores can use and no TFLite CPU kernel can; "block": whole blocks, in
            rank-2 kernels (Dense) only, since TF-MOT has no others.
        block: (rows, columns) of a block, inputs by outputs; only "block" looks at it.
        initial_sparsity: where "polynomial" and "cubic" start, in [0, `sparsity`).
        power: exponent of "polynomial": higher zeroes more of the weights early.
    """

    sparsity: float | None = None
    threshold: float | None = None
    threshold_unit: ThresholdUnit = "absolute"
    allocation: AllocationKind = "layer"
    schedule: ScheduleKind = "cubic"
    pattern: Pattern = "unstructured"
    block: tuple[int, int] = (1, 4)
    initial_sparsity: float = 0.0
    power: float = _CUBIC

    def __post_init__(self) -> None:
        """Refuse what contradicts itself or cannot be reached.

        Raises:
            CompressionError: says which field, what was expected and what arrived.
        """
        object.__setattr__(self, "block", tuple(self.block))  # JSON has lists
        for name, known in _KNOWN.items():
            _require(getattr(self, name) in known, f"{name} must be one of {', '.join(known)}", getattr(self, name))
        if self.pattern == "2:4":
            self._check_two_of_four()
        else:
            self._check_amount()
        if self.pattern == "block":
            self._check_block()
        self._check_curve()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready."""
        return {**asdict(self), "block": list(self.block)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparsityTarget:
        """Return the target of `to_dict`.

        Raises:
            CompressionError: there is a field that no target has.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        _require(not unknown, "a sparsity target has no field beyond its own", ", ".join(unknown))
        return cls(**values)

    def _check_two_of_four(self) -> None:
        _require(
            self.sparsity in (None, TWO_OF_FOUR) and self.threshold is None,
            "the pattern 2:4 zeroes half of the weights: leave sparsity at None or 0.5 and threshold at None",
            f"sparsity {self.sparsity} and threshold {self.threshold}",
        )
        _require(
            self.allocation == "layer", "2:4 is the same in every layer: allocation must be layer", self.allocation
        )
        _require(
            self.schedule == "constant",
            "TF-MOT cuts 2:4 at the first training step, once: schedule must be constant",
            self.schedule,
        )

    def _check_amount(self) -> None:
        _require(
            (self.sparsity is None) != (self.threshold is None),
            "give either a sparsity or a threshold",
            f"sparsity {self.sparsity} and threshold {self.threshold}",
        )
        if self.sparsity is not None:
            _require(0 < self.sparsity < 1, "sparsity must be above 0 and below 1", self.sparsity)
        if self.threshold is not None:
            _require(0 < self.threshold < math.inf, "threshold must be a positive number", self.threshold)
            _require(
                self.allocation == "layer",
                "a threshold decides by itself how many weights of a layer go: allocation must be layer",
                self.allocation,
            )
            _require(
                self.pattern == "unstructured",
                "a threshold cuts single weights: pattern must be unstructured",
                self.pattern,
            )

    def _check_block(self) -> None:
        whole = len(self.block) == 2 and all(isinstance(side, int) and side >= 1 for side in self.block)  # noqa: PLR2004
        _require(
            whole and math.prod(self.block) > 1,
            "block must be two whole numbers from 1 that make more than one weight, as (1, 4)",
            self.block,
        )

    def _check_curve(self) -> None:
        highest = 1.0 if self.sparsity is None else self.sparsity
        _require(
            0 <= self.initial_sparsity < highest,
            f"initial_sparsity must be in [0, {highest:g}), below the target",
            self.initial_sparsity,
        )
        _require(
            not (self.initial_sparsity and self.schedule == "constant"),
            "the constant schedule starts at its target: initial_sparsity must be 0",
            self.initial_sparsity,
        )
        _require(0 < self.power < math.inf, "power must be a positive number", self.power)
        _require(
            self.power == _CUBIC or self.schedule == "polynomial",
            "power belongs to the schedule polynomial: choose that one",
            f"power {self.power:g} with {self.schedule}",
        )


_KNOWN: dict[str, tuple[str, ...]] = {
    "threshold_unit": THRESHOLD_UNITS,
    "allocation": ALLOCATIONS,
    "schedule": SCHEDULES,
    "pattern": PATTERNS,
}


def _require(holds: bool, rule: str, got: object) -> None:
    if not holds:
        raise CompressionError(f"{rule}, got {got}")


_GROUP = 4  # of the pattern 2:4
_HELD, _PADDING = -1.0, -2.0  # below every true magnitude
_FLAT_RANK = 2


def exact_mask(kernel: np.ndarray, zeros: int, target: SparsityTarget, held: np.ndarray | None = None) -> np.ndarray:
    """Keep the weights of largest magnitude, in the target's pattern, so that exactly so many go.

    TF-MOT keeps every weight at or above a threshold, so that equal magnitudes keep too many.

    Args:
        kernel: of a shape that the pattern can prune, see `why_not`.
        zeros: what `allocate` says; 2:4 has its own number, `zeros_of_two_of_four`.
        target: only its pattern counts.
        held: an earlier mask.
    """
    magnitude = np.abs(kernel)
    if held is not None:
        magnitude = np.where(held > 0, magnitude, np.float32(_HELD))
    if target.pattern == "2:4":
        return _two_of_four(magnitude)
    if target.pattern == "block":
        units = _block_means(magnitude, target.block)
        return np.kron(_smallest(units, zeros // math.prod(target.block)), np.ones(target.block, np.float32))
    return _smallest(magnitude, zeros)


def block_magnitudes(kernel: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """Mean magnitude of every block, what TF-MOT ranks them by.

    Args:
        kernel: (rows, columns), multiples of the block's.
        block: (rows, columns).

    Returns:
        (rows / block rows, columns / block columns).
    """
    return _block_means(np.abs(kernel), block)


def zeros_of_two_of_four(shape: tuple[int, ...]) -> int:
    """Zeros that 2:4 makes in a kernel: half, but in a last, shorter group all beyond two."""
    channels = shape[-2]
    groups, rest = divmod(channels, _GROUP)
    return (math.prod(shape) // channels) * (groups * 2 + max(0, rest - 2))


def why_not(shape: tuple[int, ...], target: SparsityTarget) -> str | None:
    """Why a kernel of this shape cannot have the target's pattern; None where it can."""
    if target.pattern == "2:4" and not zeros_of_two_of_four(shape):
        return f"2:4 needs more than two input channels, it has {shape[-2]}"
    if target.pattern == "block":
        if len(shape) != _FLAT_RANK:
            return f"TF-MOT prunes blocks in rank-2 kernels only, this one has rank {len(shape)}"
        rows, columns = target.block
        if shape[0] % rows or shape[1] % columns:
            # TF-MOT takes the mean over windows that are padded on both sides, the mask over blocks from the start.
            return f"its {shape[0]}x{shape[1]} kernel does not divide into blocks of {rows}x{columns}"
    return None


def _block_means(values: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    rows, columns = block
    tiles = values.reshape(values.shape[0] // rows, rows, values.shape[1] // columns, columns)
    return tiles.mean(axis=(1, 3))


def _smallest(magnitude: np.ndarray, zeros: int) -> np.ndarray:
    """0 for the so many smallest."""
    flat = magnitude.ravel()
    mask = np.ones(flat.size, np.float32)
    mask[np.lexsort((-np.arange(flat.size), flat))[:zeros]] = 0.0
    return mask.reshape(magnitude.shape)


def _two_of_four(magnitude: np.ndarray) -> np.ndarray:
    """0 for the two smallest of every four in a row along the input channels (the last axis in a TFLite file)."""
    rows = np.moveaxis(magnitude, -2, -1)  # (..., outputs, inputs)
    missing = -rows.shape[-1] % _GROUP
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)], constant_values=_PADDING)
    groups = padded.reshape(-1, _GROUP)
    mask = np.ones(groups.shape, np.float32)
    going = np.lexsort((np.broadcast_to(-np.arange(_GROUP), groups.shape), groups), axis=-1)[:, :2]
    np.put_along_axis(mask, going, 0.0, axis=-1)
    whole = mask.reshape(padded.shape)[..., : rows.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(whole, -1, -2))
