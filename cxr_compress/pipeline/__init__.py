"""The unified run: train or load, thin, recover, zero weights, quantise, export, score, report; resumable by stage."""

from cxr_compress.pipeline.forecast import Forecast, forecast_run
from cxr_compress.pipeline.run import run_recipe, write_probe_pack
from cxr_compress.pipeline.search import SearchSpec, search_recipe
from cxr_compress.pipeline.stage import Stage, State
from cxr_compress.pipeline.stages import STAGES, register_stage
from cxr_compress.pipeline.stages.original import image_size
from cxr_compress.pipeline.stages.price import read_latency_table

__all__ = [
    "STAGES",
    "Forecast",
    "SearchSpec",
    "Stage",
    "State",
    "forecast_run",
    "image_size",
    "read_latency_table",
    "register_stage",
    "run_recipe",
    "search_recipe",
    "write_probe_pack",
]
