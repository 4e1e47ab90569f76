"""Processes in the place of those that verify; importing this imports nothing."""

from __future__ import annotations

import os
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
