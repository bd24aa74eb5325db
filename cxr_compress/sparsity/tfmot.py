"""TF-MOT's weight pruning."""

from __future__ import annotations

import functools
from typing import Any

from cxr_compress.models.tfmot import load_tfmot


@functools.cache
def sparsity_api() -> Any:
    """Return TF-MOT's ``sparsity.keras`` module, imported on first use.

    Raises:
        CompressionError: TF-MOT, or what it needs, is not installed.
    """
    return load_tfmot("weight pruning").sparsity.keras
