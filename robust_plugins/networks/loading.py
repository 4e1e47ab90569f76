"""A model from what people have: a name of the zoo, a file, or the import path of their own code."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from robust_plugins.adapters.onnx import read_classifier
from robust_plugins.errors import ArgumentError, PluginError, of_type
from robust_plugins.networks.files import load_weights, model_from_file
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import plugins, registry

SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".jit", ".pkl", ".pickle", ".safetensors", ".bin", ".onnx", ".onnx.gz")
"""What the names of model files end with."""

ONNX = (".onnx", ".onnx.gz")
"""Those of ONNX files."""


def model(name: str, /, **parameters: Any) -> nn.Module:
    """The network registered as `name`, freshly initialised: seed torch before.

    For example `rp.model("mlp", input_shape=(1, 8, 8), classes=10, widths=(64, 64))`. Raises UnknownNameError for an
    unknown name or parameter, PluginError where the plugin failed, ArgumentError for a parameter's value.

    >>> rp.model("mlp(widths=(8,))", input_shape=(1, 2, 2), classes=3)(torch.rand(5, 1, 2, 2)).shape
    torch.Size([5, 3])
    """
    return _checked(registry().create(Kind.MODEL, name, **parameters), f"model {name!r}: its factory")


def load_model(
    spec: str | nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    classes: int | None = None,
    weights: str | Path | None = None,
) -> nn.Module:
    """The model that `spec` names, for inputs of `input_shape` and so many `classes`; ONNX files know these themselves.

    - a module itself, which is returned;
    - the name of a registered network, with parameters where wanted: `"mlp(widths=(64, 64))"`; such names come first;
    - a file: ONNX, plain or gzipped; TorchScript, or a program of torch.export that was exported in evaluation mode
      and for any batch size;
    - an import path, `"package.module:factory"`: a class or function, called with the parameters written behind it,
      and with `input_shape` and `classes` where it has parameters of these names; or an `nn.Module` itself.

    `weights` are then loaded into it: safetensors, or a state dict, read with `weights_only=True`. Nothing is
    unpickled. An import path runs the code that it names. A network from an ONNX file was compared with onnxruntime.
    Raises ArgumentError, UnknownNameError, PluginError and ComponentError with what to do about it.
    """
    if isinstance(spec, nn.Module):
        found = spec
    elif not isinstance(spec, str):
        raise ArgumentError(
            "model", of_type(spec), accepted="a name, a file, an import path, or a torch.nn.Module",
            hint="rp.models() lists the names.",
        )  # fmt: skip
    elif spec.lower().endswith(ONNX):
        found = read_classifier(spec, input_shape, classes)
    elif input_shape is None or classes is None:
        raise ArgumentError(
            "input_shape" if input_shape is None else "classes", None,
            accepted="the shape of a sample, such as (1, 28, 28)" if input_shape is None else "the number of classes",
            hint="Only ONNX files know them: give input_shape and classes.",
        )  # fmt: skip
    elif is_file(spec):
        found = model_from_file(Path(spec), input_shape=input_shape)
    elif Path(spec).is_dir() and not _is_registered(spec):
        raise ArgumentError(
            "model", f"{spec!r}, a folder", accepted="a name, a file, or an import path",
            hint="Name the file in it, or for a module 'package.module:factory'.",
        )  # fmt: skip
    else:
        name, parameters = parse_component(spec)
        shape: dict[str, Any] = {"input_shape": tuple(input_shape), "classes": classes}
        if ":" in name and not _is_registered(name):
            found = _imported(name, parameters, shape)
        else:
            found = model(name, **parameters, **{k: v for k, v in shape.items() if k not in parameters})
    if weights is not None:
        load_weights(found, weights)
    return found


def is_file(spec: str) -> bool:
    """Whether `spec` means a file: by its suffix, or because one of that name exists and the zoo has none."""
    return spec.lower().endswith(SUFFIXES) or (Path(spec).is_file() and not _is_registered(spec))


def _is_registered(name: str) -> bool:
    """Whether a plugin offers this name, or would if it had not failed: then its error is the one to see."""
    provider, colon, _ = name.partition(":")
    return name in {info.name for info in models()} or (bool(colon) and provider in {info.name for info in plugins()})


def _imported(path: str, parameters: dict[str, Any], shape: dict[str, Any]) -> nn.Module:
    module, _, attribute = path.partition(":")
    hint = "Write 'package.module:factory', and make the package importable (it is looked for on sys.path)."
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArgumentError(
            "model", f"{path!r}: {error}", accepted="the import path of a class, a function or a model", hint=hint
        ) from error
    if isinstance(found, nn.Module) and not parameters:
        return found
    if isinstance(found, nn.Module) or not callable(found):
        raise ArgumentError(
            "model",
            f"{path!r}: {of_type(found)}, which takes no parameters",
            accepted="the import path of a class, a function or a model",
            hint=hint,
        )
    return _checked(_called(path, found, parameters, shape), f"{path!r}")


def _called(path: str, factory: Callable[..., Any], parameters: dict[str, Any], shape: dict[str, Any]) -> Any:
    signature = inspect.signature(factory)
    given = {name: value for name, value in shape.items() if name in signature.parameters} | parameters
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ArgumentError(
            "model",
            f"{path!r} called with {', '.join(given) or 'nothing'}: {error}",
            accepted=f"a call of {path.rpartition(':')[2]}{signature}",
            hint="Write its parameters as literals, for example 'package.module:factory(width=64)'.",
        ) from None
    return factory(**given)


def _checked(found: object, what: str) -> nn.Module:
    if not isinstance(found, nn.Module):
        raise PluginError(f"{what} returned {found!r}, which is no torch.nn.Module")
    return found


def models() -> list[ComponentInfo]:
    """Every registered model, with plugin, version and status."""
    return registry().components(Kind.MODEL)
