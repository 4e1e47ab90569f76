"""`Served`: a process of its own that answers questions, and is killed where an answer takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from robust_plugins.errors import RobustPluginsError
from robust_plugins.harness import serving
from robust_plugins.harness.serving import Pipe

BEGINNING = 300.0
"""Seconds that a process has for its imports."""
LAST_WORDS = 400
"""Characters of its standard error that are told of a process that died."""


class OverdueError(RobustPluginsError, TimeoutError):
    """The answer did not come in time, and the process was killed."""


class DiedError(RobustPluginsError):
    """The process ended without an answer; the message says how, as far as that is known."""


class Served:
    """A process that answers one question after the other, begun again after it was killed or died.

    It runs `target(pipe, *arguments)`, a function that can be imported: it sends "ready", and then an answer to each
    thing that it receives, until EOFError. The process ignores Ctrl-C, which is its parent's business, ends when its
    parent is gone, however that ended, and imports nothing of the parent's main program. With `quiet` what it prints is
    kept for the message of `DiedError`, else it goes to standard error. Processes that it starts are killed with it; a
    copy of itself that it makes by forking cannot answer.
    """

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...] = (), *, quiet: bool = False) -> None:
        self._target, self._arguments, self._quiet = target, arguments, quiet
        self._process: subprocess.Popen[bytes] | None = None
        self.noted: set[Any] = set()
        """What whoever asks has noted about the process that runs; one that is begun again knows nothing of it."""
        self._stop = threading.Lock()

    def ask(self, question: Any, timeout: float | None) -> Any:
        """The answer; raises OverdueError after `timeout` seconds, and DiedError where the process ends without one."""
        self.start()
        try:
            self._pipe.send(question)
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.stop()
            raise OverdueError(f"killed after {timeout:.1f} s") from None
        except OSError as error:
            raise self._died() from error
        if isinstance(answer, EOFError):
            raise self._died()
        return answer

    def start(self) -> None:
        """Starts the process where it does not run; raises DiedError where that fails."""
        if self._process is not None:
            return
        self.noted.clear()
        self._said = tempfile.TemporaryFile() if self._quiet else None  # noqa: SIM115 (closed when it is stopped)
        process = subprocess.Popen(
            [sys.executable, serving.__file__, json.dumps(sys.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._pipe = Pipe(process.stdout, process.stdin)
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process.stdout, self._pipe, self._answers), daemon=True).start()
        try:
            self._pipe.send((os.getpid(), self._target, self._arguments))
            ready = self._answers.get(timeout=BEGINNING)
        except queue.Empty:
            self.stop()
            raise DiedError(f"the process did not begin within {BEGINNING:.0f} s") from None
        except OSError as error:
            raise self._died() from error
        if isinstance(ready, EOFError):
            raise self._died()

    def leave(self) -> None:
        """Lets the process end by itself, which it does when nobody asks any more; kills it where it does not."""
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
        self.stop()

    def stop(self) -> None:
        """Kills the process; whoever waits for its answer is told that it died."""
        with self._stop:
            process, self._process = self._process, None
            if process is None:
                return
            with contextlib.suppress(OSError, AttributeError):  # there are no groups on Windows
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it has started, such as solvers
            process.kill()
            process.wait()
            with contextlib.suppress(OSError, ValueError):
                assert process.stdin is not None
                process.stdin.close()  # the other one is closed by the thread that reads from it
            if self._said is not None:
                self._said.close()

    def _died(self) -> DiedError:
        process, said = self._process, self._said
        if process is None:
            return DiedError("the process was stopped")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        words = ""
        if said is not None:
            said.seek(0, os.SEEK_END)
            said.seek(max(0, said.tell() - LAST_WORDS))
            words = said.read().decode(errors="replace").strip()
        code = process.returncode
        self.stop()
        return DiedError(f"its process ended with {_ending(code)}{f'; last words: {words}' if words else ''}")


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"signal {-code} ({name}{', as when memory runs out' if name == 'SIGKILL' else ''})"


def _read(stream: IO[bytes], pipe: Pipe, answers: queue.SimpleQueue[Any]) -> None:
    with contextlib.closing(stream):
        while True:
            try:
                answers.put(pipe.recv())
            except Exception:  # closed by either end, or something that cannot be unpickled
                answers.put(EOFError())
                return
