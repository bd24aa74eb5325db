"""Three sizes of a file, and the sentence that zeros alone change one of them only."""

from __future__ import annotations

import numpy as np
import pytest

from cxr_compress.errors import CompressionError
from cxr_compress.sparsity import size_statement


def file_with(zeros: int, weights: int = 20000) -> bytes:
    """A header and int8 codes, so many of them zero, at random places."""
    rng = np.random.default_rng(0)
    codes = rng.integers(1, 127, weights).astype(np.int8)
    codes[rng.permutation(weights)[:zeros]] = 0
    return b"TFL3" * 25 + codes.tobytes()


def test_size_statement_zeros_show_in_the_deflated_size_alone():
    dense = size_statement(file_with(0), weights=20000, zeros=0, bytes_per_weight=1)
    sparse = size_statement(file_with(14000), weights=20000, zeros=14000, bytes_per_weight=1)
    assert dense.raw_bytes == sparse.raw_bytes == 100 + 20000
    assert dense.nonzero_bytes == dense.raw_bytes
    assert sparse.nonzero_bytes == 100 + 6000
    assert sparse.deflated_bytes < 0.7 * dense.deflated_bytes
    assert sparse.deflated_bytes > sparse.nonzero_bytes  # where the zeros are costs something too
    assert sparse.zero_fraction == 0.7


def test_size_statement_sentence_says_all_three_and_what_zeros_do_not_do():
    statement = size_statement(file_with(14000), weights=20000, zeros=14000, bytes_per_weight=1)
    assert statement.sentence == (
        f"20,100 bytes on disk, {statement.deflated_bytes:,} deflated, 6,100 without its zeros; 70.0% of 20,000 "
        "kernel weights are zero. Zeros alone make neither a smaller .tflite nor a faster DenseNet: the file stores "
        "every zero and the kernels multiply by it. Only a deflated copy (a zip, a compressed download) is smaller; "
        "removing filters and int8 shrink the file itself."
    )


def test_size_statement_float_weights_count_four_bytes_each():
    assert size_statement(bytes(400), weights=100, zeros=25, bytes_per_weight=4).nonzero_bytes == 300
    assert size_statement(b"x", weights=0, zeros=0, bytes_per_weight=4).zero_fraction == 0.0


@pytest.mark.parametrize(("weights", "zeros", "width"), [(10, 11, 1), (10, -1, 1), (101, 5, 1), (26, 5, 4), (10, 5, 0)])
def test_size_statement_numbers_of_another_file_are_an_error(weights, zeros, width):
    with pytest.raises(CompressionError, match=rf"{zeros} zeros among {weights} .* file of 100 bytes: count them"):
        size_statement(bytes(100), weights=weights, zeros=zeros, bytes_per_weight=width)
