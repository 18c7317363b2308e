"""``GREENBACK_TRACE_SOCKET``: a Unix socket that tells what a running program does.

A client gets a line of JSON at once and a further one each second (describe.py makes it), until it
closes the connection. The server ignores what clients send. One thread serves all clients, and
waits without a time-out while there is none. Only this thread uses the sockets; a forked child
closes its copies.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import stat
import sys
import tempfile
import threading
from time import monotonic
from typing import Any, Callable, Dict, List, Optional, Tuple

if sys.platform != "win32":
    import fcntl
    import termios

#: Seconds between two lines.
INTERVAL = 1.0
#: Seconds after which a client that has not read its line is dropped.
_PATIENCE = 10.0
#: Clients at a time. A further one replaces the client that has not read for the longest time.
_CLIENTS = 8
#: `Server.close` waits at most this many seconds for the thread.
_FAREWELL = 2.0
#: The path of a socket has at most this many bytes.
_LONGEST = 107 if sys.platform == "linux" else 103
# Without this flag, a program with the default action for SIGPIPE would end. macOS has no flag.
_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        #: The rest of the line to be sent, and the time at which its sending began.
        self.rest = b""
        self.since = 0.0
        #: The time at which the client was last seen to have read everything.
        self.read_all = monotonic()

    def look(self) -> None:
        """Note the time if the client has read everything."""
        if not self.rest and _unread(self.connection) == 0:
            self.read_all = monotonic()


class Server:
    """Opens the socket, and serves its clients in a thread.

    Args:
        path: The path of the socket; ``{pid}`` in it becomes the process number.
        describe: Returns the content of a line. Called in the thread.
    """

    def __init__(self, path: str, describe: Callable[[], Dict[str, Any]]) -> None:
        self.path = os.path.abspath(path.replace("{pid}", str(os.getpid())))
        self._describe = describe
        self._is_closing = False
        self._has_failed = False
        self._thread: Optional[threading.Thread] = None
        self._listener: Optional[socket.socket] = None
        self._clients: List[_Client] = []
        # A byte through it wakes the thread.
        self._waker: Optional[Tuple[socket.socket, socket.socket]] = None
        #: Device and inode of our socket file. Another process may have replaced the file.
        self._identity: Optional[Tuple[int, int]] = None

    def start(self) -> None:
        """Start the thread. All that can take time or fail happens there."""
        if not hasattr(socket, "AF_UNIX") or not hasattr(select, "poll"):
            self._give_up("there are no Unix sockets on this system", "Unset the variable")
            return
        try:
            self._waker = socket.socketpair()
            self._waker[0].setblocking(False)
            self._waker[1].setblocking(False)
            thread = threading.Thread(target=self._run, name="greenback_trace socket", daemon=True)
            thread.start()
        except (OSError, RuntimeError) as error:
            # No descriptors or threads are left, or the interpreter is about to end.
            self._give_up(f"cannot be served ({error})", "Raise the limits of the process")
            return
        self._thread = thread

    def close(self) -> None:
        """Close all connections, and remove the file."""
        self._is_closing = True
        thread = self._thread
        if thread is None:
            return
        try:
            if self._waker is not None:
                self._waker[1].send(b"x")
        except OSError:
            pass  # the thread is awake, or has ended
        if thread is not threading.current_thread():
            thread.join(_FAREWELL)

    def abandon(self) -> None:
        """Close the copies in a forked child, which lacks the thread. Leave the file alone."""
        self._identity = None
        self._close_all()

    # What runs in the thread

    def _run(self) -> None:
        try:
            self._serve(self._open())
        except _UnusableError as error:
            self._give_up(*error.args)
        except Exception as error:
            if not self._is_closing:
                self._give_up(f"is closed, because serving it raised {error!r}", "Report this")
        finally:
            self._remove()
            self._close_all()

    def _open(self) -> socket.socket:
        """Make the listening socket. At no moment can another user connect to it.

        All threads share the umask of the process, so it stays as it is. The socket is made in a
        directory that only this user can enter, gets its mode, and is moved to its path in one
        operation.
        """
        if len(os.fsencode(self.path)) > _LONGEST:
            raise _too_long()
        try:
            self._make_room()
            directory = tempfile.mkdtemp(prefix=".", dir=os.path.dirname(self.path))
        except OSError as error:
            raise _UnusableError(
                f"cannot be opened ({error.strerror})",
                "Name a path in a directory that can be written",
            ) from None
        # Usually not longer than self.path, whose length clients have to care about.
        inside = os.path.join(directory, "s")
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.bind(inside)
            os.chmod(inside, 0o600)
            listener.listen(_CLIENTS)
            found = os.lstat(inside)
            os.rename(inside, self.path)
            self._identity = found.st_dev, found.st_ino
        except OSError as error:
            if error.errno is None:  # raised by Python itself: the path is too long
                raise _too_long() from None
            raise _UnusableError(
                f"cannot be opened ({error.strerror})",
                "Name a path in a directory that can be written",
            ) from None
        finally:
            for remove, name in ((os.unlink, inside), (os.rmdir, directory)):
                try:
                    remove(name)
                except OSError:
                    pass  # the socket was moved, or never made
        return listener

    def _make_room(self) -> None:
        """Check that the path is free, or has a socket without a process."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise _UnusableError("is a file, and no socket", "Name a path where nothing is")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except (ConnectionRefusedError, FileNotFoundError):
                return  # its process has ended without removing it
            except BlockingIOError:
                pass  # a process is there, and busy
        raise _UnusableError(
            "is another process's socket, which answers",
            "Give each process its own: {pid} in the path is replaced",
        )

    def _serve(self, listener: socket.socket) -> None:
        assert self._waker is not None
        due = 0.0
        while not self._is_closing:
            # A new object each time. An epoll object would exist in the system, and forked children
            # would share it.
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            poll.register(self._waker[0], select.POLLIN)
            by_number = {}
            for client in self._clients:
                events = select.POLLIN | (select.POLLOUT if client.rest else 0)
                poll.register(client.connection, events)
                by_number[client.connection.fileno()] = client
            timeout = max(due - monotonic(), 0) * 1000 + 1 if self._clients else None
            ready = poll.poll(timeout)
            if self._is_closing:
                return
            for number, _ in ready:
                found = by_number.get(number)
                if found is not None and not self._attend(found):
                    self._drop(found)
            new = self._accept(listener) if ready else []
            now = monotonic()
            if self._clients and now >= due:
                # Keep the pace, but pause after a line that has taken long.
                self._send_line(list(self._clients))
                due = max(due + INTERVAL, monotonic() + INTERVAL / 2)
            elif new:
                if len(new) == len(self._clients):
                    due = now + INTERVAL
                self._send_line(new)

    def _accept(self, listener: socket.socket) -> List[_Client]:
        new: List[_Client] = []
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return new
            except OSError:
                # The client has gone already, or no descriptors are left. Try again with the next
                # line, not at once and over and over.
                self._pause()
                return new
            if len(self._clients) >= _CLIENTS:
                idle = self._idle_for_longest()
                self._drop(idle)
                if idle in new:
                    new.remove(idle)
            connection.setblocking(False)
            client = _Client(connection)
            self._clients.append(client)
            new.append(client)

    def _idle_for_longest(self) -> _Client:
        """The client that has not read for the longest time; of several, the first one.

        So a client that never reads cannot keep others out.
        """
        for client in self._clients:
            client.look()
        return min(self._clients, key=lambda client: client.read_all)

    def _pause(self) -> None:
        assert self._waker is not None
        poll = select.poll()
        poll.register(self._waker[0], select.POLLIN)
        poll.poll(INTERVAL * 1000)

    def _send_line(self, clients: List[_Client]) -> None:
        now = monotonic()
        for client in clients:
            client.look()
            if client.rest and now - client.since > _PATIENCE:
                self._drop(client)
        free = [client for client in clients if client in self._clients and not client.rest]
        if not free:
            return
        try:
            line = json.dumps(self._describe(), separators=(",", ":")).encode() + b"\n"
        except Exception as error:
            # The program has changed something meanwhile. The next line comes in a second.
            if not self._has_failed:
                self._has_failed = True
                logging.getLogger("greenback").warning(
                    "GREENBACK_TRACE_SOCKET: a line for %s is left out, and perhaps more; the "
                    "program goes on: %r",
                    self.path,
                    error,
                    exc_info=error,
                )
            return
        for client in free:
            client.rest, client.since = line, now
            if not self._push(client):
                self._drop(client)

    def _attend(self, client: _Client) -> bool:
        """Go on sending the client's line. False if the client has gone."""
        try:
            # Ignore what the client sends, but see the end of the connection.
            if client.connection.recv(4096) == b"":
                return False
        except BlockingIOError:
            pass
        except OSError:
            return False
        return self._push(client)

    def _push(self, client: _Client) -> bool:
        try:
            while client.rest:
                sent = client.connection.send(client.rest, _NO_SIGPIPE)
                client.rest = client.rest[sent:]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _drop(self, client: _Client) -> None:
        self._clients.remove(client)
        client.connection.close()

    def _remove(self) -> None:
        identity, self._identity = self._identity, None
        if identity is None:
            return
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == identity:
                os.unlink(self.path)
        except OSError:
            pass  # the file or its directory was removed

    def _close_all(self) -> None:
        listener, self._listener = self._listener, None
        waker, self._waker = self._waker, None
        clients, self._clients = self._clients, []
        for each in (
            *([] if listener is None else [listener]),
            *(waker or ()),
            *(client.connection for client in clients),
        ):
            each.close()

    def _give_up(self, why: str, instead: str) -> None:
        logging.getLogger("greenback").warning(
            "GREENBACK_TRACE_SOCKET: %s %s; the program goes on without it. %s",
            self.path,
            why,
            instead,
        )


def _unread(connection: socket.socket) -> Optional[int]:
    """The number of bytes that the client has not read yet; None if the system does not tell."""
    if sys.platform == "win32":
        return None
    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)


class _UnusableError(Exception):
    """The path cannot be used. Arguments: the reason, and what to do instead."""


def _too_long() -> _UnusableError:
    return _UnusableError(
        "is too long for a socket", f"Name a path of {_LONGEST - 12} bytes at most"
    )
