from __future__ import annotations

import json
import platform
import socket

import numpy as np
import pytest

from cxr_compress.device.benchmark import (
    describe_machine,
    measure_end_to_end,
    measure_together,
    peak_memory_bytes,
    summarize,
    synthetic_png,
    time_together,
)
from cxr_compress.device.decode import decode_bytes
from cxr_compress.device.modelfile import read_model
from cxr_compress.errors import DataError
from tests.device.reference import INT8_MODEL


def test_measure_together_gives_ordered_positive_statistics() -> None:
    latency = measure_together({"model": read_model(INT8_MODEL).content}, runs=30, warmup=2)["model"]
    assert 0 < latency.min_ms <= latency.p50_ms <= latency.p95_ms
    assert latency.min_ms <= latency.mean_ms
    assert (latency.runs, latency.num_threads) == (30, 1)
    assert latency.runtime.split()[0] in ("ai-edge-litert", "tflite-runtime")
    assert json.loads(json.dumps(latency.to_dict()))["p50_ms"] == latency.p50_ms


def test_measure_together_same_model_twice_has_a_ratio_near_one() -> None:
    content = read_model(INT8_MODEL).content
    latencies = measure_together({"a": content, "b": content}, runs=200, warmup=20)
    # Interleaved medians of 200 runs of equal work; a factor of 2 allows for a very busy machine.
    assert 0.5 < latencies["a"].p50_ms / latencies["b"].p50_ms < 2.0


def test_measure_end_to_end_takes_longer_than_the_model_alone() -> None:
    model = read_model(INT8_MODEL)
    alone = measure_together({"m": model.content}, runs=10)["m"]
    whole = measure_end_to_end({"m": model}, runs=10, image_size=512)["m"]
    assert whole.min_ms > alone.min_ms  # a PNG of 512 x 512 takes milliseconds, the tiny model 0.03


def test_time_together_interleaves_and_leaves_the_warmup_out() -> None:
    order: list[str] = []
    times = time_together({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert times["a"].shape == times["b"].shape == (3,)
    assert (times["a"] > 0).all()


def test_time_together_takes_the_clock_it_is_given() -> None:
    ticks = iter(range(100))
    times = time_together({"a": lambda: None}, runs=2, warmup=1, clock=lambda: float(next(ticks)) ** 2)
    # Turns read 0 and 1 (warm-up), 4 and 9, 16 and 25 seconds.
    assert times["a"].tolist() == [5000.0, 9000.0]


def test_summarize_known_times() -> None:
    latency = summarize(np.arange(1.0, 102.0), num_threads=2, runtime="r 1")
    assert (latency.min_ms, latency.p50_ms, latency.p95_ms, latency.mean_ms) == (1.0, 51.0, 96.0, 51.0)
    assert (latency.runs, latency.num_threads, latency.runtime) == (101, 2, "r 1")


@pytest.mark.parametrize(("runs", "warmup"), [(0, 0), (-1, 0), (1, -1)])
def test_measure_together_wrong_counts_are_refused(runs: int, warmup: int) -> None:
    with pytest.raises(DataError, match="expected at least 1 run and no negative warm-up, got runs="):
        measure_together({"model": read_model(INT8_MODEL).content}, runs=runs, warmup=warmup)


def test_describe_machine_names_the_kind_but_not_the_host() -> None:
    text = describe_machine()
    assert platform.machine() in text
    assert socket.gethostname() not in text


def test_peak_memory_is_plausible_in_bytes() -> None:
    peak = peak_memory_bytes()
    assert peak is None or 20 * 2**20 < peak < 64 * 2**30


def test_synthetic_png_is_repeatable_gray_and_not_trivial() -> None:
    data = synthetic_png(200)
    assert data == synthetic_png(200)
    image = decode_bytes(data)
    assert (image.shape, image.dtype) == ((200, 200), np.uint8)
    assert len(data) > image.size * 0.3  # an image compresses to about half, a flat image to nothing
