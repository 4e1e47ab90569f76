"""Builds and loads the compiled kernels, `_kernels.cpp`, at their first use.

One call of the machine's C++ compiler (`CXX`, else c++, g++ or clang++), about a second, into the folder in which torch
keeps the extensions that it builds; later processes find the result there. Where that fails, everything is computed by
torch, several times slower. `ROBUST_PLUGINS_NATIVE=0` switches the kernels off.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("_kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-Wno-psabi")
_NATIVE = "-march=native"  # some compilers do not know it for some machines
_SECONDS = 120
_log = logging.getLogger(__name__)


class Term(ctypes.Structure):
    """`Term` of `_kernels.cpp`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("delta_lower", "delta_upper", "low", "up")),
        ("sign", ctypes.c_double),
        ("clip", ctypes.c_double),
        ("non_negative", ctypes.c_int64),
    )


class Problem(ctypes.Structure):
    """`Problem` of `_kernels.cpp`."""

    _fields_ = (
        ("terms", ctypes.POINTER(Term)),
        ("values", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "batch", "out", "columns")),
        ("offset", ctypes.c_double),
        ("floor", ctypes.c_double),
    )


def library() -> ctypes.CDLL | None:
    """The loaded kernels, or None where they are switched off or cannot be built."""
    return None if os.environ.get("ROBUST_PLUGINS_NATIVE") == "0" else _loaded()


@functools.cache
def _loaded() -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL(str(_built()))
        found.vector_bytes.restype = ctypes.c_int64
        return found
    except (OSError, subprocess.SubprocessError) as error:
        cause = getattr(error, "stderr", None) or error
        _log.warning(
            "The compiled kernels of robust_plugins.poisoning could not be built, so torch computes the same several "
            "times slower. A C++ compiler (g++, or another one named by CXX) mends this; ROBUST_PLUGINS_NATIVE=0 "
            "switches this message off. Cause: %s",
            cause,
        )
        return None


def _built() -> Path:
    compiler = _compiler()
    key = hashlib.sha256("\n".join([_SOURCE.read_text(), compiler, *_FLAGS, _processor()]).encode()).hexdigest()[:20]
    folder = _folder()
    found = folder / f"kernels_{key}.so"
    if found.exists():
        return found
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may build at once: each writes a file of its own, and the last to finish replaces the others'.
    handle, name = tempfile.mkstemp(dir=folder, suffix=".so")
    os.close(handle)
    try:
        try:
            _compile(compiler, _NATIVE, "-o", name)
        except subprocess.CalledProcessError:
            _compile(compiler, "-o", name)
        Path(name).replace(found)
    finally:
        Path(name).unlink(missing_ok=True)
    return found


def _compile(compiler: str, *arguments: str) -> None:
    command = [compiler, *_FLAGS, str(_SOURCE), *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found is not None:
            return found
    raise FileNotFoundError("no C++ compiler was found")


def _folder() -> Path:
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given) / "robust_plugins"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "torch_extensions" / "robust_plugins"


def _processor() -> str:
    """Describes what `-march=native` depends on: a home folder may be shared by machines with other instructions."""
    try:
        flags = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "Feat"))]
    except OSError:
        flags = []
    return f"{platform.machine()} {flags[0] if flags else platform.node()}"
