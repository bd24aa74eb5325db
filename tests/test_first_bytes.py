"""Files that are none, of every kind that a path can name: refused before they are read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_compress.device.modelfile import read_model
from cxr_compress.device.probe_pack import read_pack
from cxr_compress.errors import ModelFileError
from cxr_compress.files import check_keras_file, check_weights_file, first_bytes

READERS = {
    ".tflite": read_model,
    ".keras": check_keras_file,
    ".h5": check_keras_file,
    ".npz": check_weights_file,
    ".safetensors": check_weights_file,
    ".pt": check_weights_file,
    ".zip": read_pack,
}
SPARSE = 2 << 30


def make(path, kind):
    """A path of an odd kind."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        path.parent.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(SPARSE)
    else:
        path.write_bytes(b"" if kind == "empty" else b"hello, this is no model " * 500)
    return path


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fifo", "is a pipe"),
        ("device", "is a device"),
        ("socket", "is a socket"),
        ("empty", "is empty"),
        ("sparse", "no model here has more|does not start as|is no complete|none of|larger than"),
        ("text", "is not a .tflite|does not start as|is no complete|none of|is no probe pack"),
    ],
)
def test_odd_file_is_refused_at_once(tmp_path, ending, kind, message):
    path = make(tmp_path / f"odd{ending}", kind)
    with pytest.raises(ModelFileError, match=message) as caught:
        READERS[ending](path)
    assert str(caught.value).count(str(path)) <= 1


@pytest.mark.parametrize("kind", ["sparse", "text"])
def test_sparse_model_is_refused_without_reading_it_and_without_tensorflow(tmp_path, kind):
    for ending in (".tflite", ".keras", ".h5"):
        path = make(tmp_path / f"odd{ending}", kind)
        code = (
            "import sys\nfrom pathlib import Path\nfrom cxr_compress.cli.inspect import main\ncode = main()\n"
            # Not ru_maxrss, which starts with the memory of the process that started this one.
            "peak = Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]\n"
            "print(code, int(peak) // 1024, 'tensorflow' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        exit_code, megabytes, loaded = done.stdout.split()
        assert (exit_code, loaded) == ("2", "False")
        assert int(megabytes) < 200
        assert len(done.stderr.splitlines()) == 1


@given(st.binary(min_size=1, max_size=600))
def test_weights_file_passes_only_with_the_start_of_a_format(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(content)
    known = content.startswith((b"PK", b"\x80", b"\x89HDF\r\n\x1a\n")) or content[8:9] == b"{"
    known = known or content[257:262] == b"ustar" or content[512:520] == b"\x89HDF\r\n\x1a\n"
    if known:
        assert check_weights_file(path) is None
    else:
        with pytest.raises(ModelFileError, match="none of torch's formats"):
            check_weights_file(path)


def test_first_bytes_of_a_good_file_are_its_own(tmp_path):
    path = tmp_path / "good.bin"
    path.write_bytes(bytes(range(256)) * 40)
    assert first_bytes(path, 20_000) == path.read_bytes()[:8192]
    with pytest.raises(ModelFileError, match="has 10,240 bytes, no model here has more than 10,000"):
        first_bytes(path, 10_000)
    with pytest.raises(IsADirectoryError):
        first_bytes(tmp_path, 10)


def test_hdf5_behind_a_block_of_the_users_own_is_one(tmp_path):
    path = tmp_path / "good.h5"
    path.write_bytes(bytes(512) + b"\x89HDF\r\n\x1a\n" + bytes(100))
    check_keras_file(path)
    path.write_bytes(bytes(100) + b"\x89HDF\r\n\x1a\n" + bytes(500))
    with pytest.raises(ModelFileError, match="does not start as one"):
        check_keras_file(path)
