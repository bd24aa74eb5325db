"""The unified run: train or load, remove filters, recover, zero weights, quantize, export, score; resumable."""

from cxr_compress.pipeline.forecast import Forecast, forecast_run
from cxr_compress.pipeline.run import run_recipe, write_probe_pack
from cxr_compress.pipeline.search import SearchSpec, search_recipe
from cxr_compress.pipeline.stages.base import image_size, read_latency_table

__all__ = [
    "Forecast",
    "SearchSpec",
    "forecast_run",
    "image_size",
    "read_latency_table",
    "run_recipe",
    "search_recipe",
    "write_probe_pack",
]
