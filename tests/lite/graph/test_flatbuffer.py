from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from cxr_compress.errors import ModelFileError
from cxr_compress.lite import LiteModel
from cxr_compress.lite.graph.flatbuffer import name_signature, read_graphs, to_bytes, to_object
from tests.lite import nets
from tests.lite.conftest import run


@pytest.mark.parametrize("name", ["none", "fp16", "int8"])
def test_to_bytes_of_what_was_read_computes_the_same(chain_files: dict[str, LiteModel], name: str) -> None:
    content, images = chain_files[name].content, nets.batch(4)
    again = to_bytes(to_object(content))
    assert np.array_equal(run(again, images), run(content, images))
    assert to_bytes(to_object(again)) == again


def test_read_graphs_gives_shapes_dtypes_and_order(chain_files: dict[str, LiteModel]) -> None:
    (graph,) = read_graphs(chain_files["int8"].content)
    assert [op.kind for op in graph.operators] == ["CONV_2D", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    image, logits = graph.tensors[graph.inputs[0]], graph.tensors[graph.outputs[0]]
    assert (image.name, image.shape, image.dtype) == ("image", (1, 16, 16, 3), "int8")
    assert (logits.name, logits.shape, logits.dtype) == ("logits", (1, 4), "int8")
    assert image.values is None
    kernel = graph.tensors[graph.operators[0].inputs[1]]
    assert kernel.values is not None
    assert kernel.values.dtype == np.int8
    assert kernel.values.shape == kernel.shape == (8, 3, 3, 3)
    assert graph.producers()[graph.outputs[0]].kind == "FULLY_CONNECTED"


def test_read_graphs_gives_the_weights_of_the_model(chain_files: dict[str, LiteModel], chain: object) -> None:
    (graph,) = read_graphs(chain_files["none"].content)
    head = graph.tensors[graph.operators[-1].inputs[1]].values
    kernel = chain.get_layer("logits").get_weights()[0]  # type: ignore[attr-defined]
    assert np.array_equal(head, kernel.T)


def test_name_signature_twice_changes_nothing(chain_files: dict[str, LiteModel]) -> None:
    content = chain_files["int8"].content
    assert name_signature(content) == content


def test_read_graphs_of_an_index_that_points_nowhere_fails(chain_files: dict[str, LiteModel]) -> None:
    model = to_object(chain_files["none"].content)
    model.subgraphs[0].tensors[0].buffer = 10_000
    with pytest.raises(ModelFileError, match="contradicts itself"):
        read_graphs(to_bytes(model))


def test_reading_a_model_loads_no_tensorflow() -> None:
    code = (
        "import sys; from cxr_compress.lite import audit\n"
        "try: audit(b'....TFL3' + bytes(8))\n"
        "except Exception: pass\n"
        "loaded = sorted({'tensorflow', 'tf_keras', 'keras'} & set(sys.modules))\n"
        "print(loaded, 'flatbuffers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] True"
