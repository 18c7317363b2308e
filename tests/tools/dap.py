"""A client of the Debug Adapter Protocol, which editors speak with debugpy."""

from __future__ import annotations

import json
import socket
from typing import Any, Callable, Dict, List

from .processes import PATIENCE

Message = Dict[str, Any]


class Client:
    """A connection to an adapter. Nothing is waited for longer than `PATIENCE`."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._input = self._socket.makefile("rb")
        self._sent = 0
        self._unread: List[Message] = []

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def send(self, command: str, **arguments: Any) -> int:
        """Send a request, and return its number."""
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command}
        body = json.dumps({**message, "arguments": arguments}).encode()
        self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return self._sent

    def answer(self, number: int) -> Any:
        """The answer to a request."""
        message = self._first(lambda message: message.get("request_seq") == number)
        assert message["success"], message
        return message.get("body")

    def ask(self, command: str, **arguments: Any) -> Any:
        """Send a request, and return its answer."""
        return self.answer(self.send(command, **arguments))

    def event(self, name: str) -> Any:
        """The next event of that name."""
        return self._first(lambda message: message.get("event") == name).get("body")

    def _first(self, is_it: Callable[[Message], bool]) -> Message:
        for index, message in enumerate(self._unread):
            if is_it(message):
                return self._unread.pop(index)
        while True:
            message = self._read()
            if is_it(message):
                return message
            self._unread.append(message)

    def _read(self) -> Message:
        length = 0
        while True:
            line = self._input.readline()
            assert line, f"the adapter has hung up; unread: {self._unread}"
            if line == b"\r\n":
                break
            name, _, value = line.partition(b":")
            if name == b"Content-Length":
                length = int(value)
        message: Message = json.loads(self._input.read(length).decode())
        return message
