"""Downloads against a real HTTP server on loopback: cut off, resumed, refused, wrong; what ends up on disk is exact."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cxr_compress.data.fetch import FETCHABLE, MEDMNIST_MD5, SIZES, Archive, fetch, medmnist_archive
from cxr_compress.errors import DataError

CONTENT = np.random.default_rng(0).bytes(1_500_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
ARCHIVE = Archive("images.npz", "https://home.example/images.npz", MD5)


class QuietServer(http.server.ThreadingHTTPServer):
    """Says nothing when a client hangs up, which is what some of these tests are about."""

    def handle_error(self, request, client_address) -> None:
        pass


class Server:
    """A server that can be told to misbehave.

    Attributes:
        content: of every file.
        ranges: whether Range requests are honoured.
        status: to answer with instead, in turn; used up from the left.
        cut_after: bytes after which a connection is cut, in turn; used up from the left.
        asked: the headers of each request.
    """

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.status: list[int] = []
        self.cut_after: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.http = QuietServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/copies"

    def _handler(server) -> type[http.server.BaseHTTPRequestHandler]:  # noqa: N805 - two selves in one place
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(dict(self.headers))
                server.paths.append(self.path)
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if self.status:
            request.send_error(self.status.pop(0))
            return
        start = self._start(request)
        if start > len(self.content) - 1:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        body = self.content[start:]
        request.wfile.write(body[: self.cut_after.pop(0)] if self.cut_after else body)

    def _start(self, request: http.server.BaseHTTPRequestHandler) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        return int(match[1]) if match and self.ranges else 0


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def get(server: Server, folder: Path, **options) -> Path:
    return fetch(ARCHIVE, folder, mirror=server.url, pause=0.001, timeout=5, **options)


def start_of(server: Server, request: int = -1) -> str | None:
    return server.asked[request].get("Range")


def test_fetch_whole_file_is_the_published_one_and_nothing_else_is_left(server, tmp_path) -> None:
    seen: list[tuple[int, int]] = []
    path = get(server, tmp_path / "new" / "folder", progress=lambda *counts: seen.append(counts))
    assert path.read_bytes() == CONTENT
    assert [found.name for found in path.parent.iterdir()] == ["images.npz"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert server.paths == ["/copies/images.npz"]


def test_fetch_file_that_is_there_asks_no_server(server, tmp_path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    assert len(server.asked) == 1


def test_fetch_never_overwrites_another_file_of_that_name(server, tmp_path) -> None:
    (tmp_path / "images.npz").write_bytes(b"mine")
    with pytest.raises(
        DataError, match=r"expected .*images\.npz to have the published MD5 .*, got .*: .* move it away"
    ):
        get(server, tmp_path)
    assert (tmp_path / "images.npz").read_bytes() == b"mine"
    assert not server.asked


def test_fetch_cut_connections_are_resumed_where_they_ended(server, tmp_path) -> None:
    server.cut_after = [600_000, 500_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [start_of(server, i) for i in range(3)] == [None, "bytes=600000-", "bytes=1100000-"]


def test_fetch_later_run_goes_on_with_what_an_earlier_one_left(server, tmp_path) -> None:
    server.cut_after = [600_000]
    with pytest.raises(DataError, match=r"the connection was cut \(1 tries\) \(600,000 bytes are kept\)"):
        get(server, tmp_path, attempts=1)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert start_of(server) == "bytes=600000-"
    assert [found.name for found in tmp_path.iterdir()] == ["images.npz"]


def test_fetch_tries_that_bring_something_do_not_count_as_failures(server, tmp_path) -> None:
    server.cut_after = [100_000] * 12
    assert get(server, tmp_path, attempts=3).read_bytes() == CONTENT


def test_fetch_server_without_ranges_starts_anew(server, tmp_path) -> None:
    server.ranges = False
    server.cut_after = [600_000]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert start_of(server) == "bytes=600000-"


def test_fetch_file_changed_in_between_is_found_by_its_checksum_and_started_anew(server, tmp_path) -> None:
    server.content = CONTENT[::-1]
    server.cut_after = [600_000]
    with pytest.raises(DataError, match="the connection was cut"):
        get(server, tmp_path, attempts=1)
    server.content = CONTENT
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [start_of(server, i) for i in (1, 2)] == ["bytes=600000-", None]


def test_fetch_complete_partial_file_only_needs_its_name(server, tmp_path) -> None:
    (tmp_path / "images.npz.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_fetch_partial_file_longer_than_the_file_starts_anew(server, tmp_path) -> None:
    (tmp_path / "images.npz.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_fetch_wrong_content_is_refused_and_removed(server, tmp_path) -> None:
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=rf"expected the published MD5 {MD5} of images\.npz, got .* \(removed\)"):
        get(server, tmp_path)
    assert not list(tmp_path.iterdir())


def test_fetch_not_found_is_said_at_once_with_the_way_by_hand(server, tmp_path) -> None:
    server.status = [404]
    with pytest.raises(
        DataError,
        match=rf"the server says 404 Not Found; .* or download https://home\.example/images\.npz by hand .*{MD5}.* put "
        rf"it as {re.escape(str(tmp_path / 'images.npz'))}",
    ) as caught:
        get(server, tmp_path)
    assert len(server.asked) == 1
    assert "\n" not in str(caught.value)


def test_fetch_busy_server_is_asked_again(server, tmp_path) -> None:
    server.status = [503, 429]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_fetch_server_that_stays_busy_is_given_up(server, tmp_path) -> None:
    server.status = [503] * 9
    with pytest.raises(DataError, match=r"503 Service Unavailable \(3 tries\)"):
        get(server, tmp_path, attempts=3)
    assert len(server.asked) == 3


def test_fetch_refused_connection_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DataError, match=r"could not download .*: Connection refused \(2 tries\); .* by hand"):
            fetch(ARCHIVE, tmp_path, mirror=url, attempts=2, pause=0.001)
    assert not list(tmp_path.iterdir())


def test_fetch_silent_server_is_given_up_after_the_timeout(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=r"no answer in time \(1 tries\)"):
            fetch(ARCHIVE, tmp_path, mirror=url, attempts=1, timeout=0.2)


def test_fetch_disk_without_room_says_how_much_is_missing(server, tmp_path, monkeypatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"no room in .*: 1,500,000 more bytes are needed, 1,000 are free"):
        get(server, tmp_path)


@pytest.mark.parametrize("mirror", ["ftp://host/x", "file:///etc", "host/x", ""])
def test_fetch_mirror_that_is_no_web_address_is_refused(tmp_path, mirror) -> None:
    with pytest.raises(DataError, match="expected an address that starts with http:// or https://"):
        fetch(ARCHIVE, tmp_path, mirror=mirror)


def test_medmnist_archives_have_the_published_names() -> None:
    assert medmnist_archive("pneumoniamnist", 28).file == "pneumoniamnist.npz"
    archive = medmnist_archive("chestmnist", 224)
    assert archive.url == "https://zenodo.org/records/10519652/files/chestmnist_224.npz?download=1"
    assert len(set(MEDMNIST_MD5.values())) == len(FETCHABLE) * len(SIZES) == 8
    assert all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in MEDMNIST_MD5.values())


@pytest.mark.parametrize(
    ("name", "size", "words"), [("retinamnist", 28, "a data set of"), ("chestmnist", 32, "a size of")]
)
def test_medmnist_archive_unknown_is_refused(name, size, words) -> None:
    with pytest.raises(DataError, match=f"expected {words}"):
        medmnist_archive(name, size)
