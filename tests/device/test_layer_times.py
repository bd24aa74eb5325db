"""Timing layers: the fit is the least-squares optimum, every millisecond is accounted for, bad packs are one line."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.cost_table import LayerTimes, LayerUse
from cxr_compress.device.layer_times import (
    KindTimes,
    account,
    design,
    fit_kinds,
    fit_slope,
    measure_layers,
    non_negative_least_squares,
    time_layers,
    whole_blocks,
)
from cxr_compress.device.probe_pack import MoveProbe, Probe, ProbePack, read_pack
from cxr_compress.errors import DataError, ModelFileError
from tests.device.reference import INT8_MODEL, PROBE_PACK

WIDTHS = tuple(product((8, 24, 64), (16, 48, 128)))


@given(seed=st.integers(0, 200), rows=st.integers(1, 12), columns=st.integers(1, 4))
def test_nnls_meets_the_conditions_of_the_optimum(seed: int, rows: int, columns: int) -> None:
    """Karush-Kuhn-Tucker: x >= 0; no slope where x > 0; where x = 0 the error grows with x. The problem is convex."""
    rng = np.random.default_rng(seed)
    matrix, target = rng.normal(size=(rows, columns)), rng.normal(size=rows)
    x = non_negative_least_squares(matrix, target)
    slope = matrix.T @ (matrix @ x - target)
    assert (x >= 0).all()
    np.testing.assert_allclose(slope[x > 0], 0, atol=1e-9)
    assert (slope[x == 0] >= -1e-9).all()


def test_nnls_is_not_plain_least_squares_cut_off_at_zero() -> None:
    """The control: where a plain coefficient is negative, cutting it off is not the optimum."""
    matrix, target = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]), np.array([3.0, 2.0, 1.0])
    cut = np.maximum(np.linalg.lstsq(matrix, target, rcond=1e-12)[0], 0)
    x = non_negative_least_squares(matrix, target)
    np.testing.assert_allclose(x, [2.0, 0.0], atol=1e-12)
    assert np.linalg.norm(matrix @ cut - target) > 2 * np.linalg.norm(matrix @ x - target)


def law(inputs, outputs, block=1, terms=(0.02, 1e-4, 3e-4, 2e-6)):
    """Times that follow the model of a kernel exactly."""
    return design(inputs, whole_blocks(outputs, block)) @ np.array(terms)


@pytest.mark.parametrize("block", [1, 16])
def test_fit_kinds_recovers_the_terms_and_the_block(block: int) -> None:
    inputs, outputs = [8, 24, 64] * 4, [8, 16, 24, 48] * 3
    fit = fit_kinds({"k": KindTimes(inputs, outputs, law(inputs, outputs, block))})
    assert fit.output_block == block
    np.testing.assert_allclose(fit.terms["k"], (0.02, 1e-4, 3e-4, 2e-6), rtol=1e-6)
    assert fit.residuals["k"] < 1e-9


def test_fit_kinds_width_that_never_changes_still_predicts() -> None:
    inputs, outputs = [3, 3, 3], [16, 32, 64]
    times = law(inputs, outputs)
    fit = fit_kinds({"stem": KindTimes(inputs, outputs, times)})
    np.testing.assert_allclose(design(inputs, outputs) @ np.array(fit.terms["stem"]), times, rtol=1e-9)


def test_fit_slope_leaves_out_what_each_layer_takes_in_any_case() -> None:
    sizes = [1000, 9000, 100_000]
    assert fit_slope(sizes, 0.01 + 2e-7 * np.array(sizes)) == pytest.approx(2e-7)
    assert fit_slope([], np.empty(0)) == 0.0


def drawn_pack(moved: int = 500_000) -> ProbePack:
    """A pack whose times are made up: contents do not matter."""
    probes = tuple(Probe(kind, i, o, b"") for kind in ("a", "b") for i, o in WIDTHS)
    uses = (LayerUse("a", 8, 128), LayerUse("a", 64, 16), LayerUse("b", 20, 96))
    return ProbePack(b"", b"", probes, (MoveProbe(10_000, b""), MoveProbe(90_000, b"")), uses, moved, "none")


def drawn_medians(pack: ProbePack, rest_ms: float, idle: float = 0.004) -> list[float]:
    """What a machine would measure on which everything follows the model; `rest_ms` of the model is unexplained."""

    def kernel(item: Probe | LayerUse) -> float:
        return float(law([item.inputs], [item.outputs])[0]) * (2 if item.kind == "b" else 1)

    model = idle + sum(map(kernel, pack.uses)) + 2e-7 * pack.moved + rest_ms
    moves = [0.01 + 2e-7 * move.elements for move in pack.moves]
    return [model, *(idle + kernel(probe) for probe in pack.probes), *moves, idle]


def priced(times: LayerTimes, pack: ProbePack) -> float:
    """What the table says of the original model."""
    kernels = sum(
        (design([use.inputs], whole_blocks([use.outputs], times.output_block)) @ np.array(times.kinds[use.kind]))[0]
        for use in pack.uses
    )
    return float(kernels) + times.per_element * pack.moved + times.fixed


def test_account_known_machine_gives_its_law_back() -> None:
    pack = drawn_pack()
    report = account(pack, drawn_medians(pack, 0.3), runtime="r", num_threads=1)
    times = report.times
    np.testing.assert_allclose(times.kinds["a"], (0.02, 1e-4, 3e-4, 2e-6), rtol=1e-6)
    np.testing.assert_allclose(times.kinds["b"], (0.04, 2e-4, 6e-4, 4e-6), rtol=1e-6)
    assert times.per_element == pytest.approx(2e-7)
    assert times.fixed == pytest.approx(0.004 + 0.3)
    assert report.scale == 1.0
    assert priced(times, pack) == pytest.approx(report.model_ms, rel=1e-9)


def test_account_layers_slower_than_the_whole_are_scaled_down_to_it() -> None:
    pack = drawn_pack()
    medians = drawn_medians(pack, 0.0)
    medians[0] = 0.004 + (medians[0] - 0.004) / 2
    report = account(pack, medians, runtime="r", num_threads=1)
    assert report.scale == pytest.approx(0.5)
    assert report.times.fixed == pytest.approx(0.004)
    assert priced(report.times, pack) == pytest.approx(medians[0], rel=1e-9)


def test_account_nothing_moved_puts_the_rest_on_every_run() -> None:
    pack = drawn_pack(moved=0)
    report = account(pack, drawn_medians(pack, 0.5), runtime="r", num_threads=1)
    assert report.times.fixed == pytest.approx(0.504)
    assert report.moves_ms == 0.0


def test_measure_layers_prices_the_original_model_at_what_was_measured() -> None:
    told: list[str] = []
    report = time_layers(PROBE_PACK, runs=12, warmup=2, progress=told.append)
    pack, times = read_pack(PROBE_PACK), report.times
    assert set(times.kinds) == {use.kind for use in pack.uses} == set(report.residuals)
    assert priced(times, pack) == pytest.approx(report.model_ms, rel=1e-9)
    assert report.model_ms > 0
    assert (times.num_threads, times.quant_type) == (1, "none")
    assert times.runtime.split()[0] in ("ai-edge-litert", "tflite-runtime")
    assert [line.split()[3] for line in told] == ["5", "10", "12"]


def test_measure_layers_takes_bytes_and_threads() -> None:
    table = measure_layers(PROBE_PACK.read_bytes(), runs=2, warmup=0, num_threads=2)
    assert table.layer_times is not None
    assert table.layer_times.num_threads == 2


def test_measure_layers_without_runs_or_a_probe_of_a_kernel_is_refused() -> None:
    with pytest.raises(DataError, match="expected at least 1 run, got 0"):
        time_layers(PROBE_PACK, runs=0)
    pack = read_pack(PROBE_PACK)
    kind = pack.uses[0].kind
    lacking = replace(pack, probes=tuple(probe for probe in pack.probes if probe.kind != kind))
    with pytest.raises(ModelFileError, match=f"has no probe of '{kind}', which its model runs"):
        time_layers(lacking, runs=1)


def test_probe_pack_bytes_round_trip_and_do_not_depend_on_the_clock() -> None:
    data = PROBE_PACK.read_bytes()
    assert read_pack(data).to_bytes() == data
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert [member.filename for member in members] == sorted(member.filename for member in members)


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return buffer.getvalue()


def with_index(**changes: object) -> bytes:
    """The reference pack with other entries in its index."""
    members = {}
    with zipfile.ZipFile(PROBE_PACK) as archive:
        for name in archive.namelist():
            members[name.replace(".", "__")] = archive.read(name)
    index = {**json.loads(members["index__json"]), **changes}
    return zipped(**{**members, "index__json": json.dumps(index).encode()})


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(PROBE_PACK) as archive, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty; copy"),
        (PROBE_PACK.read_bytes()[:-30], "is no probe pack, or cut short"),
        (INT8_MODEL.read_bytes(), "is no probe pack: it has no index.json; make one with"),
        (zipped(other=b"x"), "is no probe pack: it has no index.json"),
        (zipped(index__json=b"{"), "is damaged: index.json cannot be read"),
        (zipped(index__json=b"[]"), "is damaged: index.json cannot be read"),
        (with_index(format=9), "is a probe pack of format 9, expected 1: update cxr_compress on this machine"),
        (with_index(moved="many"), "is damaged: index.json does not match"),
        (with_index(probes=[{"file": "index.json", "kind": "k", "inputs": 1, "outputs": 1}]), "index.json is no .tfl"),
        (with_index(probes=[{"file": "gone.tflite", "kind": "k", "inputs": 1, "outputs": 1}]), "does not match"),
        (compressed(), "its members are compressed"),
    ],
)
def test_read_pack_other_bytes_raise_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "pack.zip"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=f"{message}") as caught:
        read_pack(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_read_pack_flipped_byte_is_noticed() -> None:
    data = bytearray(PROBE_PACK.read_bytes())
    data[len(data) // 3] ^= 0xFF
    with pytest.raises(ModelFileError, match=r"is no probe pack, or cut short|is damaged"):
        read_pack(bytes(data))


def test_read_pack_missing_or_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such probe pack; check the path"):
        read_pack(tmp_path / "gone.zip")
    with pytest.raises(ModelFileError, match="is a folder, expected a probe pack"):
        read_pack(tmp_path)
