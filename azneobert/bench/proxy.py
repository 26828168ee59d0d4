"""A server's stand-in between it and its clients, which can be away, slow, or silent."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Forwards connections to a port of this machine as `mode` says. The mode may change at any time.

    refuse: closes them at once; hang: accepts and never answers; slow: waits a second before each answer.
    Use as a context manager.
    """

    def __init__(self, target: int):
        self.mode: str = "pass"
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._held: list[socket.socket] = []

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()
        for held in self._held:
            held.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.mode == "refuse":
                    client.close()
                    continue
                self._held.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target))
            self._held.append(server)
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()
            self._pump(server, client)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while self.mode == "hang":
                    time.sleep(0.1)
                if self.mode == "slow":
                    time.sleep(1.0)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
