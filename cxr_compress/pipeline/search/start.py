"""A search from a model, a data set and a tolerance or a size."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from cxr_compress.device.atomic import write_bytes
from cxr_compress.device.cost_table import CostTable
from cxr_compress.pipeline.films import Decoding
from cxr_compress.pipeline.run import open_run
from cxr_compress.pipeline.search.plot import draw_search
from cxr_compress.pipeline.search.run import SearchResult, search
from cxr_compress.pipeline.search.runs import CandidateRuns
from cxr_compress.pipeline.search.spec import SearchSpec
from cxr_compress.pipeline.store import News
from cxr_compress.recipe import Recipe

PICTURE = "search.png"


def search_recipe(
    recipe: Recipe,
    spec: SearchSpec,
    *,
    data_dir: Path,
    output_dir: Path,
    keras_model_file: Path | None = None,
    latency_table: CostTable | None = None,
    news: News = lambda line: None,
    decoding: Decoding = lambda split, done, total: None,
    overwrite: bool = False,
) -> SearchResult:
    """Find the smallest model that keeps a tolerance, or the best one of a size, and score it on test once.

    Every point is kept in search.json, every candidate in a folder of its own; the same call again goes on from there.
    search.png shows all points where matplotlib is installed.

    Args:
        recipe: everything but the budgets that are searched.
        spec: goal, grid and bounds.
        data_dir: as `run_recipe`, like all below.
        output_dir: see there.
        keras_model_file: see there.
        latency_table: see there.
        news: see there.
        decoding: see there.
        overwrite: see there.

    Raises:
        BudgetError: nothing keeps what it must; the line names the nearest point.
        CompressionError: and its other subclasses; all points so far are kept.
    """
    if spec.goal == "smallest":
        recipe = recipe.with_values(target_macs=None)  # the search sets it, point by point
    run = open_run(recipe, data_dir, output_dir, keras_model_file, news, decoding, overwrite=overwrite)
    runs = CandidateRuns(dataclasses.replace(run, latency_table=latency_table))
    try:
        return search(recipe, spec, runs, folder=output_dir, fingerprint=runs.fingerprint, news=news)
    finally:
        _draw(output_dir, runs.fingerprint, spec)


def _draw(folder: Path, fingerprint: str, spec: SearchSpec) -> None:
    """The points so far, also of a search that found nothing or was stopped; without matplotlib there is no picture."""
    tolerance = spec.max_auroc_drop if spec.goal == "smallest" else None
    with contextlib.suppress(ModuleNotFoundError):
        picture = draw_search(folder, fingerprint, title="Points of the search", tolerance=tolerance)
        write_bytes(folder / PICTURE, picture)
