"""Reading of ONNX files, plain or gzipped, into the library's own form, with one clear error for what is none."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from robust_plugins.adapters.onnx.backend import library
from robust_plugins.errors import ArgumentError


def contents(path: Path, argument: str, accepted: str) -> bytes:
    """The bytes of a file, unpacked where it is gzipped; where only `path` with `.gz` behind it exists, that one's.

    Raises ArgumentError, naming `argument`, for files that are missing, unreadable, truncated or empty.
    """

    def refused(found: str, hint: str) -> ArgumentError:
        return ArgumentError(argument, f"{str(path)!r}: {found}", accepted=accepted, hint=hint)

    packed = path.with_name(path.name + ".gz")
    path = packed if not path.exists() and packed.exists() else path
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise refused("no file", "Check the path.") from None
    except OSError as error:
        raise refused(f"unreadable ({error.strerror})", "Check the path.") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise refused(f"damaged gzip ({error})", "Fetch or pack it again.") from error
    if not data.strip():
        raise refused("empty", "Fetch or write it again.")
    return data


def read_model(path: Path) -> Any:
    """The `onnx.ModelProto` in a file, its local functions inlined and its external data loaded.

    Raises ArgumentError for files that hold no model, PluginError where onnx is missing.
    """
    onnx = library("onnx")
    data = contents(path, "file", "an ONNX model, plain or gzipped")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's own, which differs between its implementations
        raise _refused(path, f"no ONNX model, or a truncated one ({_line(error)})") from error
    if not model.graph.node and not model.graph.output:
        raise _refused(path, "no ONNX model: it has neither nodes nor outputs")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # missing or damaged files beside it
        raise _refused(path, f"missing the weights that lie beside it ({_line(error)})") from error
    return library("onnx.inliner").inline_local_functions(model) if model.functions else model


def _refused(path: Path, found: str) -> ArgumentError:
    return ArgumentError(
        "file", f"{str(path)!r}: {found}", accepted="an ONNX model, plain or gzipped", hint="Fetch or export it again."
    )


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
