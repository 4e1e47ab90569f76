"""What processes run in the place of the real work; importing this imports nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any


def moody(pipe: Any, *_: Any) -> None:
    """Answers, never answers or dies, as the network's name says."""
    pipe.send("ready")
    while True:
        try:
            name = pipe.recv()[0]
        except EOFError:
            return
        if name == "dies":
            os._exit(3)
        if name == "hangs":
            time.sleep(1000)
        pipe.send(("unsat", ""))


def obeying(pipe: Any, ending: str) -> None:
    """Does what it is told: to print, to crash, to hang, to say its number, or to repeat."""
    pipe.send("ready")
    while True:
        try:
            told = pipe.recv()
        except EOFError:
            return
        if told == "print":
            print("noise", flush=True)
            told = "printed"
        elif told == "crash":
            print("about to crash", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        elif told == "fork":
            if os.fork() == 0:
                told = "answered by the copy"
        elif told == "start":
            told = str(subprocess.Popen(["sleep", "1000"]).pid) + " "
        elif told == "hang":
            time.sleep(1000)
        elif told == "pid":
            pipe.send(os.getpid())
            continue
        pipe.send(told + ending)


def unable(pipe: Any) -> None:
    """Fails before it begins."""
    raise RuntimeError("cannot begin")
