"""Models and weights from files, without unpickling anything: a pickle runs its author's code when it is read."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, PluginError, of_type

CONVERT = (
    "In the program that has its classes, write its weights with torch.save(model.state_dict(), 'weights.pt') and pass "
    "them as weights of 'package.module:factory', or write the whole model with torch.export.save(torch.export.export("
    "model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)), 'model.pt2')."
)
"""How to turn a pickled model into something that can be read safely."""

EXPORT = (
    "Export it again: torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)), with "
    "a batch x of two samples or more."
)


def model_from_file(path: Path, *, input_shape: Sequence[int]) -> nn.Module:
    """The model in a TorchScript or torch.export file. What is inside decides, not the name.

    Raises ArgumentError for files that are missing, something else, or pickled models, and for programs that hold
    for one batch size or one input shape only or were recorded in training mode: no later call could mend those.
    """
    members = _members(path)
    if any(name.endswith("archive_format") or name == "serialized_exported_program.json" for name in members):
        return _from_export(path, tuple(input_shape))
    if any(PurePosixPath(name).parts[1:2] == ("code",) for name in members):
        return _from_torchscript(path)
    # What torch.save wrote: tensors under weights_only=True, or a pickled model.
    _tensors(path)
    raise _refused(path, "holding weights without a model", "Pass it as weights, and name the model that they are of.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Loads the weights in `path` into `model`: safetensors by that suffix, else a state dict from `torch.save`.

    A state dict may also be the entry `state_dict` of a dictionary. It is read with `weights_only=True`. Raises
    ArgumentError for files that are missing, pickled or of another shape than the model, PluginError where
    safetensors is not installed.
    """
    path = Path(path)
    state = _safetensors(path) if path.suffix == ".safetensors" else _tensors(path)
    nested = state.get("state_dict")
    state = nested if isinstance(nested, Mapping) else state
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError, TypeError) as error:
        causes = " ".join(line.strip() for line in str(error).splitlines()[1:3]) or _first_line(error)
        raise ArgumentError(
            "weights",
            f"{str(path)!r}, which does not fit the model: {causes}",
            accepted="one tensor for every parameter and buffer of the model",
            hint="Give the model the parameters it was trained with, for example 'mlp(widths=(64, 64))'.",
        ) from error


def _members(path: Path) -> list[str]:
    if not path.is_file():
        raise _refused(path, "no file", "Check the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:  # the format of torch.save before 1.6, or no model at all
        return []


def _from_torchscript(path: Path) -> nn.Module:
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, and still what people have.
        warnings.filterwarnings("ignore", ".*torch.jit.load.* is deprecated", DeprecationWarning)
        try:
            model: torch.jit.ScriptModule = torch.jit.load(path, map_location="cpu")
        except RuntimeError as error:
            raise _refused(path, f"unreadable TorchScript ({_first_line(error)})", "Save it again.") from error
    graph: Any = model.inlined_graph
    for operation, flag in (("aten::dropout", 2), ("aten::batch_norm", 5)):
        for node in graph.findAllNodes(operation):
            if list(node.inputs())[flag].toIValue() is True:
                raise _refused(path, "traced in training mode", "Trace it again, after model.eval().")
    return model


def _from_export(path: Path, input_shape: tuple[int, ...]) -> nn.Module:
    try:
        _refuse_pickles_in_export(path)
        program = torch.export.load(path)
    except ArgumentError:
        raise
    except Exception as error:  # a damaged archive can fail anywhere in torch's reader
        raise _refused(path, f"an unreadable program ({_first_line(error)})", EXPORT) from error
    users = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in program.graph_signature.user_inputs]
    if len(users) != 1 or not isinstance(users[0].meta.get("val"), Tensor):
        raise _refused(path, f"a program of {len(users)} inputs", "Export a model of one tensor.")
    batch, *features = users[0].meta["val"].shape
    limits = program.range_constraints.get(getattr(getattr(batch, "node", None), "expr", None))
    if limits is None or limits.lower > 1 or limits.upper < 2**31:
        size = batch if limits is None else f"{limits.lower} to {limits.upper}"
        raise _refused(path, f"exported for the batch size {size} only", EXPORT)
    if len(features) != len(input_shape) or any(
        isinstance(f, int) and f != side for f, side in zip(features, input_shape, strict=True)
    ):
        shape = f"exported for inputs of shape {tuple(features)}, where the data have {input_shape}"
        raise _refused(path, shape, "Use the data set that the model is for.")
    for node in program.graph.nodes:
        arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
        given = {a.name: value for a, value in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
        if given.get("train") is True or given.get("training") is True:
            raise _refused(path, f"exported in training mode ({node.target})", EXPORT)
    return program.module()


def _refuse_pickles_in_export(path: Path) -> None:
    """`torch.export.load` falls back to unrestricted pickles for parts of the archive; none may be there."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json"):
                for part in json.loads(archive.read(name)).get("config", {}).values():
                    if part["use_pickle"] or not part["path_name"].startswith(("weight_", "tensor_")):
                        raise _refused(path, f"holding the pickled object {part['path_name']}", CONVERT)
            elif name.endswith(".pt") and (content := archive.read(name)):
                try:
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                except Exception as error:  # the unpickler meets arbitrary bytes here, and raises accordingly
                    raise _refused(path, f"holding pickled objects in {name}", CONVERT) from error


def _tensors(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings():
            # Of a plain pickle's protocol, just before it is refused.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _refused(path, "no file", "Check the path.") from None
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            start = file.read(2)
        if start[:1] != b"\x80" and start != b"PK":  # how pickles begin, and the archives of torch.save
            raise _refused(path, "neither a model nor weights", "Save it in one of these forms.") from error
        raise _refused(path, "a pickled model, which would run its author's code when read", CONVERT) from error
    except Exception as error:  # the unpickler meets arbitrary bytes here, and raises accordingly
        raise _refused(path, f"unreadable ({_first_line(error)})", "Save it again.") from error
    if not isinstance(found, Mapping):
        raise _refused(path, f"holding {of_type(found)}", "Save model.state_dict().")
    return found


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise PluginError(
            f'reading {str(path)!r} needs safetensors; install it: pip install "robust_plugins[safetensors]"'
        ) from error
    try:
        return dict(load_file(path))
    except FileNotFoundError:
        raise _refused(path, "no file", "Check the path.") from None
    except SafetensorError as error:
        raise _refused(path, f"unreadable ({error})", "Save it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _refused(path: Path, found: str, hint: str) -> ArgumentError:
    return ArgumentError(
        "file",
        f"{str(path)!r}: {found}",
        accepted="ONNX (.onnx), TorchScript, a program of torch.export for any batch size, or as weights a state "
        "dict or safetensors",
        hint=hint,
    )
