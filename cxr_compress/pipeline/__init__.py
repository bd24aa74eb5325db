"""The unified run: train or load, thin, recover, zero weights, quantise, export, score, report; resumable by stage."""

from cxr_compress.pipeline.costing import read_latency_table
from cxr_compress.pipeline.run import run_recipe, write_probe_pack

__all__ = ["read_latency_table", "run_recipe", "write_probe_pack"]
