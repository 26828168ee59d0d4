"""An MLflow that begins its answer and never ends it costs a run its bounds and one line, as a silent one does."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from refusals import refused
from stores_of_runs import INFO, tracking_at
from toy import run_ranks

from azneobert.errors import RegistryError
from azneobert.mlflow_store import attach_files, check_store
from azneobert.tracking.delivery import deliver_folder
from azneobert.tracking.tracker import Tracker

BEGINNINGS = {
    "headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "body": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.fixture
def dripping_server() -> Iterator[Callable[[str], str]]:
    """Starts servers that begin an answer and then send a byte each 0.2 s, for ever."""
    ended = threading.Event()
    listening: list[socket.socket] = []

    def answer(connection: socket.socket, beginning: bytes, byte: bytes) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(beginning)
            while not ended.wait(0.2):
                connection.sendall(byte)

    def accept(server: socket.socket, beginning: bytes, byte: bytes) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=answer, args=(connection, beginning, byte), daemon=True).start()

    def start(where: str) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        byte = b"1\r\n \r\n" if where == "chunks" else b" "
        threading.Thread(target=accept, args=(server, BEGINNINGS[where], byte), daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    ended.set()
    for server in listening:
        server.close()


@pytest.mark.parametrize("where", list(BEGINNINGS))
def test_an_answer_that_never_ends_is_one_line_when_its_time_is_over(
    where: str, dripping_server: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    uri = dripping_server(where)
    check = [lambda: check_store(tracking_at(uri)), lambda: attach_files(tracking_at(uri), "a" * 32, [tmp_path / "a"])]
    (tmp_path / "a").write_text("a")
    for ask in check:
        began = time.monotonic()
        with refused(RegistryError, f"MLflow at {uri}: no answer in 1 s"):
            ask()
        assert 0.9 < time.monotonic() - began < 5
    deadline = time.monotonic() + 5
    while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a request that has ended leaves no timer behind"
        time.sleep(0.05)


def short_run(folder: Path, uri: str) -> float:
    os.environ.pop("MLFLOW_HTTP_REQUEST_TIMEOUT", None)
    began = time.monotonic()
    tracker = Tracker(folder, tracking_at(uri), INFO, system_metrics=True)
    for step in range(1, 4):
        tracker.log(step, {"train/loss": float(step)})
    tracker.finish("FINISHED")
    return time.monotonic() - began


@pytest.mark.long
def test_a_run_pays_its_bounds_and_its_points_arrive_later(
    dripping_server: Callable[[str], str], mlflow_uri: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    [seconds] = run_ranks(short_run, folder, dripping_server("body"), folder=tmp_path)
    assert seconds < 10 + 2 * 10 + 10  # the start, a delivery that is under way and the last one
    assert deliver_folder(folder, tracking_at(mlflow_uri)) == 3


class _Slow(BaseHTTPRequestHandler):
    """Answers whole, each time after 0.6 s: within the time of one answer, not of all together."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(0.6)
        content = b'{"experiments": []}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


def test_each_answer_has_time_of_its_own_on_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for _ in range(3):
        check_store(tracking_at(f"http://127.0.0.1:{server.server_port}"))
    server.shutdown()
    server.server_close()
