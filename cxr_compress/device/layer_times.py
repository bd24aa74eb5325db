"""Find out what each kind of layer costs on this machine: time a probe pack, fit the widths, account for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import fsum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cxr_compress.device.benchmark import describe_machine, prepare_call, time_together
from cxr_compress.device.cost_table import CostTable, LayerTimes, LayerUse
from cxr_compress.device.probe_pack import Probe, ProbePack, read_pack
from cxr_compress.errors import DataError, ModelFileError

FloatArray = npt.NDArray[np.float64]
Terms = tuple[float, float, float, float]

# What the kernels of today's runtimes compute at once: 4 or 8 channels on ARM, up to 32 on x86.
_BLOCKS = (1, 4, 8, 16, 32)
# A coarser block must explain the times clearly better: noise alone may favor any.
_CLEARLY = 0.9


@dataclass(frozen=True)
class KindTimes:
    """The widths and times of one kind of kernel: (probes,) each, times in milliseconds above 0."""

    inputs: Sequence[int]
    outputs: Sequence[int]
    times: FloatArray


@dataclass(frozen=True)
class KindsFit:
    """By kind of kernel, fitted terms and largest relative residual; and the block that outputs are rounded up to."""

    terms: dict[str, Terms]
    residuals: dict[str, float]
    output_block: int


def fit_kinds(kinds: Mapping[str, KindTimes]) -> KindsFit:
    """Fit every kind of kernel, with the one block of output channels that explains all of them best."""
    best, least = _fit_with_block(kinds, 1)
    for block in _BLOCKS[1:]:
        fit, error = _fit_with_block(kinds, block)
        if error < _CLEARLY * least:
            best, least = fit, error
    return best


def _fit_with_block(kinds: Mapping[str, KindTimes], block: int) -> tuple[KindsFit, float]:
    """The fit, and the sum of its squared relative residuals."""
    terms, residuals, total = {}, {}, 0.0
    for name, kind in kinds.items():
        outputs = whole_blocks(kind.outputs, block)
        terms[name] = fit_kind(kind.inputs, outputs, kind.times)
        relative = design(kind.inputs, outputs) @ np.array(terms[name]) / kind.times - 1
        residuals[name] = float(np.abs(relative).max())
        total += float(relative @ relative)
    return KindsFit(terms, residuals, block), total


def whole_blocks(outputs: Sequence[int], block: int) -> list[int]:
    """Each number rounded up to a multiple of the block."""
    return [-(-count // block) * block for count in outputs]


def fit_kind(inputs: Sequence[int], outputs: Sequence[int], times: FloatArray) -> Terms:
    """Non-negative (fixed, per input, per output, per pair) that give the times of one kind of kernel.

    Relative errors are minimized: a layer of 20 us counts as much as one of 2 ms, since a model has many small ones.

    Args:
        inputs: (probes,) input channels.
        outputs: (probes,) output channels.
        times: (probes,) milliseconds, above 0.
    """
    columns = design(inputs, outputs) / times[:, np.newaxis]
    fixed, per_in, per_out, per_in_out = non_negative_least_squares(columns, np.ones(len(times))).tolist()
    return fixed, per_in, per_out, per_in_out


def fit_slope(elements: Sequence[int], times: FloatArray) -> float:
    """Milliseconds per element, from layers of several sizes; what each takes in any case is fitted and left out.

    Args:
        elements: (layers,) that each moves.
        times: (layers,) milliseconds, above 0.
    """
    if not len(times):
        return 0.0
    columns = np.stack([np.ones(len(times)), np.asarray(elements, dtype=np.float64)], axis=1) / times[:, np.newaxis]
    return float(non_negative_least_squares(columns, np.ones(len(times)))[1])


def design(inputs: Sequence[int], outputs: Sequence[int]) -> FloatArray:
    """(layers, 4): what the four terms of each layer are multiplied with."""
    ins, outs = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    return np.stack([np.ones_like(ins), ins, outs, ins * outs], axis=1)


def non_negative_least_squares(matrix: FloatArray, target: FloatArray) -> FloatArray:
    """The x >= 0 with the least |matrix x - target|; for few columns: every set of columns above 0 is tried.

    Exact: the best x has some set of positive entries, and is the plain least-squares solution on those columns.
    Collinear columns (a width that never changes) share what they explain.

    Args:
        matrix: (rows, columns).
        target: (rows,).
    """
    count = matrix.shape[1]
    sizes = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(sizes > 0, sizes, 1)
    # What NumPy takes when asked to choose; asking makes it warn where tflite-runtime flushes subnormals (ARM).
    rounding = max(matrix.shape) * 2.0**-52
    best, least = np.zeros(count), float(target @ target)
    for columns in chain.from_iterable(combinations(range(count), n) for n in range(1, count + 1)):
        part = list(columns)
        solution = np.linalg.lstsq(scaled[:, part], target, rcond=rounding)[0]
        error = float(np.sum((scaled[:, part] @ solution - target) ** 2))
        # Fewer terms win a tie: what a width that never changes would explain is told by the fixed term.
        if (solution >= 0).all() and error < least * (1 - 1e-12) - 1e-300:
            best, least = np.zeros(count), error
            best[part] = solution
    return best / np.where(sizes > 0, sizes, 1)


_TURNS_A_REPORT = 5
# Windows counts a thread's time in steps of 16 ms.
_COARSE_SECONDS = 1e-5

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LayerReport:
    """Layer times and how far they can be trusted.

    Attributes:
        times: what budgets are held against; they price the original model at exactly what was measured.
        model_ms: median of the original model, without what other programs took; see `time_layers`.
        kernels_ms: how much of it the fitted times of its kernels add up to.
        moves_ms: how much of it goes to elements that other layers move.
        scale: what the fitted times were multiplied with; below 1 where the layers one by one took longer than the
            whole model.
        residuals: by kind of kernel, the largest relative difference between a probe and the fit.
    """

    times: LayerTimes
    model_ms: float
    kernels_ms: float
    moves_ms: float
    scale: float
    residuals: dict[str, float]

    @property
    def table(self) -> CostTable:
        """The table that `select_channels` takes."""
        return CostTable(layer_times=self.times)


def measure_layers(
    pack: str | Path | bytes | ProbePack,
    *,
    runs: int = 50,
    warmup: int = 5,
    num_threads: int = 1,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> CostTable:
    """The table of `time_layers`, which says more."""
    return time_layers(
        pack, runs=runs, warmup=warmup, num_threads=num_threads, runtime=runtime, progress=progress
    ).table


def time_layers(
    pack: str | Path | bytes | ProbePack,
    *,
    runs: int = 50,
    warmup: int = 5,
    num_threads: int = 1,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> LayerReport:
    """Time the layers of a probe pack and its whole model turn by turn, and fit how widths cost.

    What kernels and moved elements do not explain of the whole model's time is fixed: it stays however pruned the model
    gets. Needs all flatbuffers in memory at once (DenseNet121: about 150 MB).

    With one thread the processor time of that thread is taken, which other programs do not add to: what a run takes on
    a machine that does nothing else. With several, whose waiting for one another counts, it is wall-clock time.

    Args:
        pack: a probe pack: its path, its bytes or what `read_pack` gave.
        runs: timed runs of each flatbuffer.
        warmup: untimed runs of each.
        num_threads: threads of the kernels; a table holds for this number.
        runtime: "auto", "litert" or "tflite-runtime"; a table holds for the one that ran.
        progress: is told how far it is.

    Raises:
        ModelFileError: as `read_pack`, or a kernel of the model that no probe stands for.
        RuntimeUnavailableError: as `load_interpreter`.
        DataError: runs below 1 or warmup below 0.
    """
    read = pack if isinstance(pack, ProbePack) else read_pack(pack)
    lacking = sorted({use.kind for use in read.uses} - {probe.kind for probe in read.probes})
    if lacking:
        raise ModelFileError(f"the probe pack has no probe of {lacking[0]!r}, which its model runs; make a new one")
    calls, used = _calls(read, num_threads, runtime)
    medians = _medians(calls, runs, warmup, _clock(num_threads), progress or (lambda line: None))
    return account(read, medians, runtime=used, num_threads=num_threads)


def account(pack: ProbePack, medians: Sequence[float], *, runtime: str, num_threads: int) -> LayerReport:
    """Spread the original model's time over the run itself, its kernels and what all else moves.

    Args:
        pack: what was timed.
        medians: milliseconds of the model, each probe, each move and the idle flatbuffer, in this order.
        runtime: that timed them.
        num_threads: that it ran on.
    """
    model_ms, idle, probes = medians[0], medians[-1], len(pack.probes)
    fit = fit_kinds(_by_kind(pack.probes, np.array(medians[1 : 1 + probes])))
    kinds = {kind: _without(idle, terms) for kind, terms in fit.terms.items()}
    moves = fit_slope([move.elements for move in pack.moves], np.array(medians[1 + probes : -1]))
    kernels_ms, moves_ms = _kernels_ms(pack.uses, kinds, fit.output_block), moves * pack.moved
    fixed = min(idle, model_ms)
    explained = kernels_ms + moves_ms
    scale = min(1.0, (model_ms - fixed) / explained) if explained > 0 else 1.0
    times = LayerTimes(
        runtime=runtime,
        machine=describe_machine(),
        num_threads=num_threads,
        quant_type=pack.quant_type,
        kinds={kind: _scaled(values, scale) for kind, values in kinds.items()},
        output_block=fit.output_block,
        per_element=scale * moves,
        fixed=max(fixed, model_ms - explained),
    )
    return LayerReport(times, model_ms, scale * kernels_ms, scale * moves_ms, scale, fit.residuals)


def _kernels_ms(uses: Sequence[LayerUse], kinds: Mapping[str, Terms], output_block: int) -> float:
    """What the kernels of a model add up to."""
    outputs = whole_blocks([use.outputs for use in uses], output_block)
    terms = np.array([kinds[use.kind] for use in uses]).reshape(-1, 4)
    return fsum((design([use.inputs for use in uses], outputs) * terms).ravel().tolist())


def _calls(pack: ProbePack, num_threads: int, runtime: str) -> tuple[list[Callable[[], None]], str]:
    """One call for each flatbuffer, in the order of `account`.

    The model first and the idle one last: what comes right after the model finds the caches full of it and takes
    longer than it should, which matters least to the first probes, layers on large images.
    """
    alone = [probe.content for probe in pack.probes] + [move.content for move in pack.moves]
    contents = [pack.model, *alone, pack.idle]
    loaded = [prepare_call(content, num_threads, runtime) for content in contents]
    return [call for call, _ in loaded], loaded[0][1]


def _medians(
    calls: Sequence[Callable[[], None]], runs: int, warmup: int, clock: Callable[[], float], progress: Progress
) -> list[float]:
    """Median milliseconds of each call, timed turn by turn."""
    if runs < 1:
        raise DataError(f"expected at least 1 run, got {runs}")
    named = {str(number): call for number, call in enumerate(calls)}
    parts = []
    for done in range(0, runs, _TURNS_A_REPORT):
        turns = min(_TURNS_A_REPORT, runs - done)
        parts.append(time_together(named, runs=turns, warmup=0 if done else warmup, clock=clock))
        progress(f"timed {len(calls)} flatbuffers {done + turns} of {runs} times")
    return [float(np.median(np.concatenate([part[name] for part in parts]))) for name in named]


def _clock(num_threads: int) -> Callable[[], float]:
    coarse = time.get_clock_info("thread_time").resolution > _COARSE_SECONDS
    return time.perf_counter if num_threads > 1 or coarse else time.thread_time


def _by_kind(probes: Sequence[Probe], times: FloatArray) -> dict[str, KindTimes]:
    by_kind = {}
    for kind in dict.fromkeys(probe.kind for probe in probes):
        chosen = [number for number, probe in enumerate(probes) if probe.kind == kind]
        widths = [probes[n].inputs for n in chosen], [probes[n].outputs for n in chosen]
        by_kind[kind] = KindTimes(*widths, times[chosen])
    return by_kind


def _without(idle: float, terms: Terms) -> Terms:
    """A kernel's own terms: what every run takes is off.

    Off the fixed term after the fit: off the times themselves it would leave those of small layers to noise, and the
    relative errors of those would rule the fit.
    """
    fixed, per_in, per_out, per_in_out = terms
    return max(0.0, fixed - idle), per_in, per_out, per_in_out


def _scaled(terms: Terms, scale: float) -> Terms:
    fixed, per_in, per_out, per_in_out = terms
    return scale * fixed, scale * per_in, scale * per_out, scale * per_in_out
