"""Tensors out of foreign files, without the frameworks that wrote them and without running anything in them."""

from __future__ import annotations

from cxr_compress.models.tensor_file.read import TensorFile, read_tensors

__all__ = ["TensorFile", "read_tensors"]
