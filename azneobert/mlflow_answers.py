"""Makes a server end its answer in time, not only begin it.

`requests` bounds each wait for more of an answer, but not the sum of the waits: if a server, or a proxy before it,
sends a byte a second, the answer would never be given up.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Any

_here = threading.local()  # `deadline`: that of this thread's current request


def bound_answers() -> None:
    """Limit the time of each whole answer to MLflow's client to its timeout; sending a request is not limited.

    For streamed answers, which are files, the limit holds for the headers.
    """
    from mlflow.utils.request_utils import TCPKeepAliveHTTPAdapter

    if TCPKeepAliveHTTPAdapter.send is not _send:
        _Deadline.send = TCPKeepAliveHTTPAdapter.send
        TCPKeepAliveHTTPAdapter.send = _send  # type: ignore[method-assign]


class _Deadline:
    """Cuts the connection of a request whose answer has not ended in time."""

    send: Any = None  # of the adapter as MLflow has it

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._end: float | None = None
        self._timer: threading.Timer | None = None
        self.passed = False

    def watch(self, connection: socket.socket) -> None:
        """Begin to watch: the request was sent on this connection. If it is sent again, it has the rest of the time."""
        self.stop()
        now = time.monotonic()
        self._end = self._end or now + self._seconds
        if now >= self._end:
            self.passed = True
            raise TimeoutError("timed out")
        self._timer = threading.Timer(self._end - now, self._cut, [connection])
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Stop watching: the answer is there, or is given up."""
        if self._timer:
            self._timer.cancel()

    def _cut(self, connection: socket.socket) -> None:
        self.passed = True
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _send(
    self: Any,
    request: Any,
    stream: bool = False,
    timeout: Any = None,
    verify: Any = True,
    cert: Any = None,
    proxies: Any = None,
) -> Any:
    """`HTTPAdapter.send` with a deadline."""
    from requests.exceptions import ReadTimeout

    seconds = timeout[1] if isinstance(timeout, tuple) else timeout
    if seconds is None:
        return _Deadline.send(self, request, stream, timeout, verify, cert, proxies)
    _watch_connections(self.get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert))
    deadline = _here.deadline = _Deadline(seconds)
    try:
        response = _Deadline.send(self, request, stream, timeout, verify, cert, proxies)
        if not stream:
            _ = response.content  # is read here, within the time
        if deadline.passed:  # headers that are cut may pass for whole ones
            raise TimeoutError("timed out")
        return response
    except Exception as error:  # any error that a cut connection causes in urllib3 or in requests
        if deadline.passed:
            raise ReadTimeout("Read timed out", request=request) from error
        raise
    finally:
        deadline.stop()
        _here.deadline = None


class _Watched:
    """A connection, HTTP's or HTTPS's, that tells the deadline when it begins to wait for an answer."""

    sock: socket.socket

    def getresponse(self) -> Any:
        if deadline := getattr(_here, "deadline", None):
            deadline.watch(self.sock)
        return super().getresponse()  # type: ignore[misc] # of the connection beside which this class stands


def _watch_connections(pool: Any) -> None:
    """Make a pool create watched connections."""
    if not issubclass(pool.ConnectionCls, _Watched):
        pool.ConnectionCls = type("WatchedConnection", (_Watched, pool.ConnectionCls), {})
