"""`cxr_data fetch`: from a server on loopback to a checked file, and the one line where there is none."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from cxr_compress.cli.data import main
from cxr_compress.data import fetch as fetching

CONTENT = b"PK a small archive" * 1000


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Iterator[str]:
    """A folder served over HTTP that holds the 64 px archive, whose checksum is taken for the published one."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    published = {**fetching.MEDMNIST_MD5, ("pneumoniamnist", 64): hashlib.md5(CONTENT).hexdigest()}
    monkeypatch.setattr(fetching, "MEDMNIST_MD5", published)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "pneumoniamnist_64.npz").write_bytes(CONTENT)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "www"))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_puts_the_checked_file_in_place_and_says_whose_it_is(tmp_path, mirror, capsys) -> None:
    command = ["fetch", "--dataset=pneumoniamnist", "--size=64", f"--output_dir={tmp_path / 'out'}"]
    for _ in range(2):
        assert main([*command, f"--mirror={mirror}", "--format=json"]) == 0
        shown = capsys.readouterr()
        result = json.loads(shown.out)
        assert result["file"] == str(tmp_path / "out" / "pneumoniamnist_64.npz")
        assert result["bytes"] == len(CONTENT)
        assert "CC BY 4.0" in result["attribution"]
    assert (tmp_path / "out" / "pneumoniamnist_64.npz").read_bytes() == CONTENT


def test_fetch_file_that_the_mirror_lacks_is_one_line_and_exit_code_2(tmp_path, mirror, capsys) -> None:
    command = ["fetch", "--dataset=chestmnist", "--size=28", f"--output_dir={tmp_path / 'out'}", f"--mirror={mirror}"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "chestmnist.npz: the server says 404" in error
    assert f"put it as {tmp_path / 'out' / 'chestmnist.npz'}" in error
    assert error.count("\n") == 1


def test_fetch_without_a_network_is_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main(["fetch", "--dataset=chestmnist", f"--output_dir={tmp_path}", f"--mirror={url}"]) == 2
    error = capsys.readouterr().err
    assert "Connection refused (4 tries)" in error
    assert "download https://zenodo.org/records/10519652/files/chestmnist.npz?download=1 by hand" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output_dir=x"], "expected --dataset to be one of pneumoniamnist, chestmnist, got None"),
        (["--dataset=kermany", "--output_dir=x"], "got 'kermany'"),
        (["--dataset=chestmnist"], "--output_dir is missing"),
        (["--dataset=chestmnist", "--output_dir=x", "--size=32"], "--size=32"),
        (["--dataset=chestmnist", "--output_dir=x", "extra"], "expected flags only after fetch, got 'extra'"),
        (["--dataset=chestmnist", "--output_dir=x", "--mirror=ftp://x"], "starts with http:// or https://"),
    ],
)
def test_fetch_wrong_flags_end_with_2_and_one_line(tmp_path, monkeypatch, capsys, flags, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
