"""Which batch norms are folded: all where it costs nothing, none whose folding would ruin its neighbors' steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cxr_compress.device.runner import Runner
from cxr_compress.lite import convert, freeze
from cxr_compress.lite.int8.fold import choose_folds, find_foldable, fold_scales
from cxr_compress.lite.int8.ranges import joined_ranges, measure_ranges, write_ranges
from cxr_compress.lite.lowering import lower, quantize
from tests.lite import nets
from tests.lite.int8.test_fold_scale import block_with, kinds


def with_faint_channel(scale: float) -> Any:
    """The block of `test_fold_scale`, one channel of its first batch norm nearly constant: relu(scale x + 1)."""
    model = block_with(1)
    norm = model.get_layer("norm")
    gamma, beta, mean, variance = norm.get_weights()
    gamma[2], beta[2] = scale * np.sqrt(variance[2] + norm.epsilon), 1.0
    norm.set_weights([gamma, beta, mean, variance])
    return model


def float_graph(model: Any) -> bytes:
    return lower(freeze(model), "none")


def test_find_foldable_names_results_scales_and_kernels() -> None:
    model = block_with(3)
    first, last = find_foldable(float_graph(model))
    gamma, _, _, variance = model.get_layer("norm").get_weights()
    np.testing.assert_allclose(first.scale, gamma / np.sqrt(variance + 1e-3), rtol=1e-5)
    assert [kernel.shape for kernel in first.kernels] == [(6, 9, 8)]
    assert [kernel.shape for kernel in last.kernels] == [(4, 1, 12)]  # through the mean, into the head
    assert len(find_foldable(float_graph(block_with(1, signs="mixed")))) == 1  # negative scales cannot move on


def test_choose_folds_takes_all_where_scales_are_alike() -> None:
    content = float_graph(block_with(1))
    lines: list[str] = []
    chosen = choose_folds(content, nets.batch(16, seed=1), progress=lines.append)
    assert chosen == {one.name for one in find_foldable(content)}
    assert lines == ["2 of 2 batch norms in front of convolutions are folded into those"]


@pytest.mark.parametrize("scale", [1e-3, 1e-4])
def test_choose_folds_leaves_the_norm_of_a_faint_channel(scale: float) -> None:
    content = float_graph(with_faint_channel(scale))
    images = nets.batch(32, seed=1)
    first, last = find_foldable(content)
    assert choose_folds(content, images) == {last.name}
    # The control: folded all the same, its neighbors have no steps left.
    exact, errors = Runner(content)(images), []
    for only in ({last.name}, {first.name, last.name}):
        graph = fold_scales(content, only=only)[0]
        made = quantize(write_ranges(graph, joined_ranges(graph, measure_ranges(graph, images))))
        errors.append(np.sqrt(np.square(Runner(made)(images) - exact).mean()))
    assert errors[0] < 0.05 * exact.std()
    assert errors[1] > 5 * errors[0]


def test_choose_folds_obeys_its_limit_and_does_not_depend_on_threads() -> None:
    content, images = float_graph(block_with(3)), nets.batch(16, seed=1)
    assert choose_folds(content, images, most_noise=0.0) == frozenset()
    assert choose_folds(content, images, num_threads=2) == choose_folds(content, images)


def test_choose_folds_of_a_graph_without_such_norms_looks_at_nothing(chain: Any) -> None:
    assert choose_folds(float_graph(chain), nets.batch(2, seed=1)) == frozenset()


def test_fold_scales_leaves_what_was_not_chosen() -> None:
    content = float_graph(block_with(1))
    first, last = find_foldable(content)
    folded, done = fold_scales(content, only={last.name})
    assert done.scaled == (last.name,)
    assert done.left == {first.name: "was not chosen"}
    assert kinds(folded)["MUL"] == 1


def test_convert_by_default_folds_where_it_costs_nothing() -> None:
    images = nets.batch(32, seed=1)
    options: dict[str, Any] = {"calibration": [images], "calibration_steps": 32}
    assert kinds(convert(block_with(1), "int8", **options).content)["MUL"] == 0
    assert kinds(convert(with_faint_channel(1e-6), "int8", **options).content)["MUL"] == 1
