"""Hostile pickles: refused in both of torch's formats, and nothing of them runs or is imported."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tracemalloc

import numpy as np
import pytest

from cxr_compress.errors import ModelFileError
from cxr_compress.models.imports import pickle_machine
from cxr_compress.models.imports.tensor_file import read_tensors
from tests.models.torch_files import Call, Instance, Name, Raw, module, write_legacy, write_zip

WRITERS = pytest.mark.parametrize("write", [write_zip, write_legacy])
WEIGHTS = np.ones(3, np.float32)


def bombs(canary: str) -> dict[str, Raw | Call | Instance]:
    """Pickles each of which makes the file `canary` when Python's own Unpickler reads it, or imports a module."""
    shell = f"echo boom > {canary}"
    return {
        "os.system": Call(Name("os", "system"), (shell,)),
        "posix.system": Call(Name("posix", "system"), (shell,)),
        "nt.system": Call(Name("nt", "system"), (shell,)),
        "builtins.eval": Call(Name("builtins", "eval"), (f"open({canary!r}, 'w').write('boom')",)),
        "python 2 eval": Call(Name("__builtin__", "eval"), (f"open({canary!r}, 'w').write('boom')",)),
        "subprocess": Call(Name("subprocess", "check_output"), (["touch", canary],)),
        "getattr": Call(Name("builtins", "getattr"), (Name("os", "system"), "__call__")),
        "instance": Instance(Name("subprocess", "Popen"), {"args": shell}),
        "stack global": Raw(b"\x8c\x02os\x8c\x06system\x93(" + pickle.dumps(shell, 2)[2:-1] + b"tR"),
        "inst": Raw(b"(" + pickle.dumps(shell, 2)[2:-1] + b"ios\nsystem\n"),
        "obj": Raw(b"(cos\nsystem\n" + pickle.dumps(shell, 2)[2:-1] + b"o"),
        "numpy runstring": Call(Name("their.module", "run"), (shell,)),
        "called placeholder": Raw(b"ca\nB\n)\x81(" + pickle.dumps(shell, 2)[2:-1] + b"tR"),
        "extension registry": Raw(b"\x82\x01"),
        "text persistent id": Raw(b"Pos.system\n"),
        "import": Call(Name("antigravity", "x"), ()),  # opens a web browser when it is imported
    }


NAMES = list(bombs(""))


@WRITERS
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["alone", "beside weights", "in a module"])
def test_read_tensors_pickle_bomb_is_refused_and_nothing_runs(tmp_path, write, name, place):
    canary = tmp_path / "canary"
    bomb = bombs(str(canary))[name]
    value = {
        "alone": bomb,
        "beside weights": {"w": WEIGHTS, "x": bomb},
        "in a module": module(Name("a", "B"), {"w": WEIGHTS}, hook=bomb),
    }[place]
    imported = set(sys.modules)
    with pytest.raises(ModelFileError, match=r"refused|asks to run"):
        read_tensors(write(tmp_path / "bomb.pt", value))
    assert not canary.exists()
    assert "antigravity" not in set(sys.modules) - imported


def test_control_the_bomb_does_run_in_pythons_own_unpickler(tmp_path):
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"echo boom > {canary}",)

    pickle.loads(pickle.dumps(Bomb()))
    assert canary.exists()


def test_read_tensors_bomb_in_the_head_of_a_stream_is_refused(tmp_path):
    canary = tmp_path / "canary"
    content = write_legacy(tmp_path / "w.pth", {"w": WEIGHTS}).read_bytes()
    start = content.index(b"\x80\x02", content.index(b"\x80\x02", 2) + 2)  # the third pickle: what the machine was
    command = pickle.dumps(f"echo boom > {canary}", 2)[2:-1]
    (tmp_path / "w.pth").write_bytes(content[:start] + b"\x80\x02cos\nsystem\n(" + command + b"tR." + content[start:])
    with pytest.raises(ModelFileError, match=r"asks to run os\.system"):
        read_tensors(tmp_path / "w.pth")
    assert not canary.exists()


@WRITERS
@pytest.mark.parametrize(
    "harmless",
    [
        Instance(Name("torchxrayvision.models", "DenseNet"), {}),
        Instance(Name("argparse", "Namespace"), {"lr": 0.1}),
        Call(Name("torch", "device"), ("cpu",)),
        Call(Name("numpy.core.multiarray", "scalar"), (Name("numpy", "dtype"), "x")),
        Call(Name("_codecs", "encode"), ("\xff\x00", "latin1")),
        Call(Name("copy_reg", "_reconstructor"), (Name("a", "B"), Name("__builtin__", "object"), None)),
        Call(Name("collections", "defaultdict"), (Name("__builtin__", "list"),)),
    ],
)
def test_read_tensors_what_checkpoints_carry_along_becomes_placeholders(tmp_path, write, harmless):
    value = {"state_dict": {"w": WEIGHTS}, "args": harmless}
    file = read_tensors(write(tmp_path / "w.pt", value))
    np.testing.assert_array_equal(file.tensors["w"], WEIGHTS)
    assert "torchxrayvision" not in sys.modules


MEMORY = 50_000_000  # bytes; what each of the pickles below would take many times over


@pytest.mark.parametrize(
    "opcodes",
    [
        b"N" + b"r\xff\xff\xff\xff",  # a memo of four billion places
        b"\x8d" + (1 << 62).to_bytes(8, "little"),  # a text of 4 EiB
        b"\x8e" + (1 << 40).to_bytes(8, "little"),
        b"\x8b\xff\xff\xff\x7f",  # a number of 2 GiB
        b"](" + b"N" * 20_000 + b"e" + b"q\x00" + b"c__builtin__\nset\n(h\x00tR" * 20_000,  # a list copied 20,000 times
        b"](" + b"](NNe" * 5_000 + b"e" + b"q\x00" + b"ccollections\nOrderedDict\n(h\x00tR" * 20_000,
        b"X\x10\x27\x00\x00" + b"a" * 10_000 + b"q\x00" + b"c_codecs\nencode\n(h\x00h\x00tR" * 20_000,
        b")" + b"q\x00h\x00h\x00\x86" * 5_000,  # a tuple of 2 ** 5000 leaves
        b"]q\x00h\x00a" * 1_000,  # lists in themselves
        b"(" * 200_000,
        b")" + b"\x85" * 200_000 + b"}q\x00" + b"h\x00",  # nested deeper than the C stack
    ],
)
def test_pickle_machine_bombs_of_memory_stay_small(opcodes, tmp_path):
    # Warm what is imported lazily, so that only the reading is measured.
    machine = pickle_machine.PickleMachine(lambda *_: None, lambda _: None, lambda _: None)
    assert machine.load(io.BytesIO(b"N.")) is None
    path = write_zip(tmp_path / "bomb.pt", {"w": WEIGHTS, "x": Raw(opcodes)})
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            raise_always(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


def raise_always(path) -> None:
    """Read; a bomb that is inert and leaves the weights readable counts as defused too."""
    read_tensors(path)
    raise ModelFileError("defused")


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"\x80\x06N.", "of protocol 6, newer than 5"),
        (b"}(K\x01\x85\x85K\x02u.", "a dict whose keys are no names or numbers"),
        (b"a.", "damaged or cut short"),
        (b"N", "damaged or cut short"),
        (b"h\x05.", "damaged or cut short"),
        (b"K\x01K\x02a.", "damaged or cut short"),
        (b"N\x86.", "damaged or cut short"),
        (b"K\x01K\x02\x93.", "damaged or cut short"),
        (b"\x97.", "uses the opcode NEXT_BUFFER"),
        (b"K\x01)R.", "calls something that is no plain class"),
        (b"\xff.", "damaged or cut short"),
    ],
)
def test_pickle_machine_wrong_program_is_one_clear_error(opcodes, message):
    machine = pickle_machine.PickleMachine(lambda *_: None, lambda _: None, lambda _: None)
    with pytest.raises(ModelFileError, match=message):
        machine.load(io.BytesIO(opcodes))


def test_pickle_machine_endless_program_is_an_error(monkeypatch):
    monkeypatch.setattr(pickle_machine, "MOST_OPCODES", 100)
    machine = pickle_machine.PickleMachine(lambda *_: None, lambda _: None, lambda _: None)
    with pytest.raises(ModelFileError, match="far longer than that of any network"):
        machine.load(io.BytesIO(b"N0" * 100 + b"N."))


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_machine_plain_data_of_every_protocol_is_what_python_reads(protocol):
    value = {"a": [1, -2, 1 << 70, 2.5, True, None, "ü", b"x" if protocol > 2 else "x"], "b": ((), (1,), (1, 2, 3, 4))}
    machine = pickle_machine.PickleMachine(lambda *_: None, lambda _: None, lambda _: None)
    stream = io.BytesIO(pickle.dumps(value, protocol) + b"rest")
    assert machine.load(stream) == value
    assert stream.read() == b"rest"


@pytest.mark.parametrize("opcodes", [b"U\x03abc.", b"T\x03\x00\x00\x00abc.", b"S'abc'\n.", b"Vabc\n."])
def test_pickle_machine_texts_of_python_2_are_texts(opcodes):
    machine = pickle_machine.PickleMachine(lambda *_: None, lambda _: None, lambda _: None)
    assert machine.load(io.BytesIO(opcodes)) == "abc"
