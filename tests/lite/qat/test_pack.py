"""Equal vectors once: smaller, and the same model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cxr_compress.device.runner import Runner
from cxr_compress.lite.graph.flatbuffer import read_graphs
from cxr_compress.lite.qat.convert import share_vectors
from tests.lite import nets


def test_share_vectors_makes_a_smaller_file_of_the_same_content(block_files):
    content = block_files["int8"].content
    shared = share_vectors(content)

    assert len(shared) < len(content)
    assert share_vectors(shared) == shared
    for one, other in zip(read_graphs(content)[0].tensors, read_graphs(shared)[0].tensors, strict=True):
        assert replace(one, values=None) == replace(other, values=None)
        assert np.array_equal(one.values, other.values)
    images = nets.batch(4)
    assert np.array_equal(Runner(shared)(images), Runner(content)(images))
