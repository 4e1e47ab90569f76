"""`undisturbed`: what a component leaves changed in its process is put back before the next one runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Puts back the working folder, the import path, and those settings of Python and torch that calls leave alone.

    A copy of the process, which a component makes by forking and does not end, ends where it leaves the block: it
    would go on with the study beside this one. The number of threads is set for each job anyway, and the default type,
    device, gradient mode and random states are put back by the public calls themselves.
    """
    process, path, limit = os.getpid(), list(sys.path), sys.getrecursionlimit()
    try:
        folder = os.getcwd()
    except FileNotFoundError:  # somebody has deleted it
        folder = None
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    anomalies, checked = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(0)
        sys.setrecursionlimit(limit)
        if sys.path != path:
            sys.path[:] = path
        if folder is not None:
            with contextlib.suppress(OSError):
                os.chdir(folder)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if torch.is_anomaly_enabled() != anomalies:
            torch.autograd.set_detect_anomaly(anomalies, check_nan=checked)
