"""Sums of products against least squares at once, and the strength of the pull against what is best on other rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.structured.repair.least_squares import ONE_IMAGE_RIDGE, RIDGES, NormalEquations, choose_ridge


def sums(rows, targets, *, constant: bool = True) -> NormalEquations:
    """Those of one problem."""
    equations = NormalEquations(rows.shape[1], targets.shape[1], constant=constant)
    equations.add(rows[None], targets[None])
    return equations


def test_in_pieces_they_equal_least_squares_at_once():
    rng = np.random.default_rng(0)
    rows, targets = rng.normal(size=(80, 6)) + 1.0, rng.normal(size=(80, 2))
    equations = NormalEquations(6, 2, constant=True)
    for part in np.array_split(np.arange(80), 7):
        equations.add(rows[None, part], targets[None, part])
    weights, constant = equations.solve(np.zeros((1, 6, 2)), 1e-12)
    augmented = np.column_stack([rows, np.ones(80)])
    expected, residue, _, _ = np.linalg.lstsq(augmented, targets, rcond=None)
    np.testing.assert_allclose(np.vstack([weights[0], constant]), expected, atol=1e-8)
    spread = np.sum((targets - targets.mean(axis=0)) ** 2)
    assert equations.error(weights, constant) == pytest.approx(residue.sum() / spread, rel=1e-8)


def test_they_keep_the_start_where_the_data_say_nothing():
    rows = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1.0, 0.0]
    equations = sums(rows, rows @ [[2.0], [3.0], [0.0]], constant=False)
    weights, _ = equations.solve(np.array([[[0.0], [0.0], [7.0]]]), 1e-9)
    np.testing.assert_allclose(weights[0], [[2.0], [3.0], [7.0]], atol=1e-6)


def test_a_problem_of_zeros_keeps_its_weights_beside_one_that_is_solved():
    rng = np.random.default_rng(0)
    rows = np.stack([np.zeros((30, 2)), rng.normal(size=(30, 2))])
    equations = NormalEquations(2, 1, constant=True, problems=2)
    equations.add(rows, rows @ np.array([[[1.0], [1.0]], [[4.0], [5.0]]]))
    weights, _ = equations.solve(np.full((2, 2, 1), 9.0), 1e-9)
    np.testing.assert_allclose(weights[..., 0], [[9.0, 9.0], [4.0, 5.0]], atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(problems=st.integers(1, 4), columns=st.integers(1, 5), outputs=st.integers(1, 3), seed=st.integers(0, 99))
def test_problems_side_by_side_are_those_one_by_one_and_rests_add_up(problems, columns, outputs, seed):
    rng = np.random.default_rng(seed)
    rows, targets = rng.normal(size=(problems, 24, columns)), rng.normal(size=(problems, 24, outputs))
    start = rng.normal(size=(problems, columns, outputs))
    parts = [NormalEquations(columns, outputs, constant=True, problems=problems) for _ in range(2)]
    parts[0].add(rows[:, :10], targets[:, :10])
    parts[1].add(rows[:, 10:], targets[:, 10:])
    together = parts[0].plus(parts[1])
    ridge = rng.uniform(0.01, 1.0, size=problems)
    weights, constant = together.solve(start, ridge)
    for number in range(problems):
        one, its_constant = sums(rows[number], targets[number]).solve(start[number : number + 1], ridge[number])
        np.testing.assert_allclose(weights[number], one[0], atol=1e-9)
        np.testing.assert_allclose(constant[number], its_constant[0], atol=1e-9)
    # What is taken away again leaves the first part, to the rounding of sums of some tens.
    rest, _ = together.plus(parts[1], -1).solve(start, ridge)
    np.testing.assert_allclose(rest, parts[0].solve(start, ridge)[0], atol=1e-8)


@pytest.mark.parametrize(("noise", "strong"), [(0.0, False), (30.0, True)])
def test_the_pull_is_weak_where_the_fit_holds_and_strong_where_it_does_not(noise, strong):
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(8, 1))
    folds = []
    for _ in range(4):
        rows = rng.normal(size=(6, 8))
        folds.append(sums(rows, rows @ truth + noise * rng.normal(size=(6, 1))))
    (chosen,) = choose_ridge(folds, np.zeros((1, 8, 1)))
    assert chosen == (RIDGES[-1] if strong else RIDGES[0])


def test_without_a_second_part_there_is_nothing_to_try_a_fit_on():
    rows = np.random.default_rng(0).normal(size=(6, 3))
    assert choose_ridge([sums(rows, rows)], np.zeros((1, 3, 3))).tolist() == [ONE_IMAGE_RIDGE]
