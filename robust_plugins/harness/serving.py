"""Runs in a process of its own, as a program: it answers what `robust_plugins.harness.served` asks.

It imports nothing but Python's own library, so that a process costs the imports of its target alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from typing import IO, Any


class Pipe:
    """Sends and receives objects over two streams of bytes."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def send(self, thing: Any) -> None:
        """Sends an object that can be pickled; raises OSError where nobody is there any more."""
        content = pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
        self._outgoing.write(len(content).to_bytes(8, "little"))
        self._outgoing.write(content)
        self._outgoing.flush()

    def recv(self) -> Any:
        """The next object; raises EOFError where the other end is closed."""
        size = self._incoming.read(8)
        content = self._incoming.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
        if len(size) < 8 or len(content) < int.from_bytes(size, "little"):
            raise EOFError
        return pickle.loads(content)


def serve() -> None:
    """Runs in the process: takes what to do from standard input, and keeps everything else away from the pipe."""
    sys.path[:] = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a backend prints must not be taken for an answer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # Where a component forks, the copy would answer, too, and its answer be taken for that of the next question; and
    # while it lives nobody would see that this process has died.
    os.register_at_fork(after_in_child=lambda: _close(incoming.fileno(), outgoing.fileno()))
    pipe = Pipe(incoming, outgoing)
    parent, target, arguments = pipe.recv()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    own = os.getpid()
    try:
        target(pipe, *arguments)
    except BrokenPipeError:
        pass
    finally:
        if os.getpid() != own:  # a copy has no business here
            os._exit(0)


def _close(*files: int) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            os.close(file)


def _watch(parent: int) -> None:
    """Ends this process when its parent is gone: a long computation would not notice for hours."""
    while os.getppid() == parent or os.name != "posix":
        time.sleep(1)
    with contextlib.suppress(OSError):
        os.killpg(os.getpid(), signal.SIGKILL)  # with the processes that it has started
    os._exit(1)


if __name__ == "__main__":
    serve()
