"""Cost tables: the JSON gives back the same numbers, and whatever was not measured so is refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.cost_table import ONE_CHANNEL_A_GROUP, CostTable, FileBytes, KernelKind, LayerTimes
from cxr_compress.errors import CompressionError

# tflite-runtime makes ARM processors flush subnormals to zero.
costs = st.floats(0, 1e9, allow_nan=False, allow_subnormal=False)
file_bytes = st.builds(FileBytes, costs, costs, costs, costs)
layer_times = st.builds(
    LayerTimes,
    runtime=st.text(),
    machine=st.text(),
    num_threads=st.integers(1, 64),
    quant_type=st.sampled_from(["none", "int8"]),
    kinds=st.dictionaries(st.text(), st.tuples(costs, costs, costs, costs), max_size=4),
    output_block=st.integers(1, 32),
    per_element=costs,
    fixed=costs,
)
tables = st.builds(CostTable, st.none() | file_bytes, st.none() | layer_times)

TABLE = CostTable(
    FileBytes(1.0, 27.3, 2.0, 40_000.0),
    LayerTimes("r 1", "m", 1, "none", {"Dense 1": (0.1, 0.0, 1e-3, 1e-6)}, 8, 1e-7, 0.02),
)


@given(tables)
def test_cost_table_json_round_trip_is_equal(table: CostTable) -> None:
    assert CostTable.from_json(table.to_json()) == table


def test_cost_table_json_has_one_kind_a_line_and_only_the_parts_it_has() -> None:
    assert '\n   "Dense 1": [0.1, 0.0, 0.001, 1e-06]\n' in TABLE.to_json()
    assert json.loads(CostTable().to_json()) == {"format": 1}
    assert set(json.loads(CostTable(TABLE.file_bytes).to_json())) == {"format", "file_bytes"}


def changed(**entries: object) -> str:
    """The JSON of TABLE with other entries; a name like file_bytes__fixed reaches into a part."""
    document = json.loads(TABLE.to_json())
    for path, value in entries.items():
        *folders, name = path.split("__")
        place = document
        for folder in folders:
            place = place[folder]
        place[name] = value
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a cost table \(JSON\), could not read it"),
        ("[1]", "got JSON without a format"),
        ("{}", "got JSON without a format"),
        (changed(format=2), "cost table of format 1, got 2: measure it with this version, or update"),
        (changed(extra=1), "in a cost table, got unknown extra: measure it again"),
        (changed(file_bytes={"fixed": 1.0}), "file_bytes of a cost table, got no filter, kernel_element, norm_channel"),
        (changed(file_bytes__more=1.0), "in file_bytes of a cost table, got unknown more"),
        (changed(file_bytes=3), "expected file_bytes of a cost table as an object, got 3"),
        (changed(file_bytes__fixed=-1.0), "finite number of 0 or more for file_bytes.fixed, got -1.0"),
        (changed(file_bytes__fixed=True), "finite number of 0 or more for file_bytes.fixed, got True"),
        (changed(layer_times__fixed=float("nan")), "finite number of 0 or more for layer_times.fixed, got nan"),
        (changed(layer_times__per_element="1"), "for layer_times.per_element, got '1'"),
        (changed(layer_times__kinds=[]), "layer_times.kinds as lists of four times"),
        (changed(layer_times__kinds={"a": 1}), "layer_times.kinds as lists of four times"),
        (changed(layer_times__kinds={"a": [1.0]}), "expected fixed, per_in, per_out, per_in_out for kernel kind 'a'"),
        (changed(layer_times__kinds={"a": [1, 1, -1, 1]}), r"layer_times.kinds\['a'\].per_out, got -1"),
        (changed(layer_times__num_threads=0), "whole layer_times.num_threads of 1 or more, got 0"),
        (changed(layer_times__output_block=1.5), "whole layer_times.output_block of 1 or more, got 1.5"),
        (changed(layer_times__runtime=None), "expected text for layer_times.runtime, got None"),
    ],
)
def test_cost_table_from_other_json_raises_one_line(text: str, message: str) -> None:
    with pytest.raises(CompressionError, match=message) as caught:
        CostTable.from_json(text)
    assert "\n" not in str(caught.value)


def conv(**changes: object) -> KernelKind:
    fields = {
        "class_name": "Conv2D", "kernel_size": (3, 3), "strides": (1, 1), "dilation": (1, 1), "groups": 1,
        "multiplier": 1, "padding": "same", "input_size": (28, 28), "output_size": (28, 28),
    }  # fmt: skip
    return KernelKind.from_dict({**fields, **changes})


@pytest.mark.parametrize(
    ("kind", "name", "axes"),
    [
        (conv(), "Conv2D 3x3 s1 28x28", (-2, -1)),
        (conv(strides=(2, 1), dilation=(1, 2), groups=4), "Conv2D 3x3 s2x1 d1x2 g4 28x28", (-2, -1)),
        (conv(groups=ONE_CHANNEL_A_GROUP), "Conv2D 3x3 s1 g1ch 28x28", (-1, None)),
        (conv(class_name="DepthwiseConv2D", multiplier=2), "DepthwiseConv2D 3x3 s1 m2 28x28", (-2, None)),
        (conv(class_name="Conv2DTranspose"), "Conv2DTranspose 3x3 s1 28x28", (-1, -2)),
        (KernelKind("Dense", (), (), (), 1, 1, "valid", (), ()), "Dense 1", (-2, -1)),
    ],
)
def test_kernel_kind_name_says_what_is_computed_and_axes_where(
    kind: KernelKind, name: str, axes: tuple[int, int | None]
) -> None:
    assert kind.name == name
    assert kind.width_axes == axes
    assert KernelKind.from_dict(json.loads(json.dumps(kind.to_dict()))) == kind


def test_kernel_kind_padding_and_input_size_do_not_make_another_kind() -> None:
    assert conv(padding="valid", input_size=(30, 30)).name == conv().name


def test_kernel_kind_from_other_keys_raises() -> None:
    with pytest.raises(CompressionError, match=r"of a kernel kind, got \['class_name'\]"):
        KernelKind.from_dict({"class_name": "Conv2D"})
