"""The unified run: train or load, thin, recover, zero weights, quantise, export, score, report; resumable by stage."""

from cxr_compress.pipeline.run import run_recipe

__all__ = ["run_recipe"]
