"""The one place that knows which auto_LiRPA is installed, and that undoes what it does to the process.

Two lines of it are in use: 0.3, the last release on the package index, written for torch < 1.13 and numpy < 2, and
0.7, installed from its repository. `load()` imports either. What 0.3 misses in a current torch or numpy is lent to it
while it is imported and while it traces a model, and taken back afterwards; nothing is lent to 0.7. What an import of
either changes in the process (warning filters, the root logger, torch's JIT flags, the standard output), and the
folder that it creates in the user's home, is undone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from robust_plugins.errors import PluginError
from robust_plugins.registry.backends import imported_version
from robust_plugins.registry.hookspecs import Backend

# With its dependencies it would replace torch and pytest by older ones.
_NEWEST = (
    "pip install --no-deps git+https://github.com/Verified-Intelligence/auto_LiRPA && "
    "pip install appdirs graphviz ninja packaging pyyaml setuptools tqdm"
)

BACKEND = Backend(
    "auto_LiRPA",
    install=(f"pip install --no-deps auto_LiRPA==0.3 && pip install appdirs packaging pyyaml tqdm, or {_NEWEST}"),
)

JACOBIAN_BACKEND = BACKEND._replace(install=_NEWEST, at_least="0.7")

# What `precompute_relaxation` of 0.3 leaves in a node, and what was computed so far.
_TABLES = ("x_limit", "step_pre", "num_points_pre", "d_lower", "d_upper")
_tangents: dict[tuple[Any, ...], dict[str, Any]] = {}

_lock = threading.RLock()
_loaded: LiRPA | None = None


@dataclass(frozen=True)
class LiRPA:
    """An imported auto_LiRPA: its version, and the classes that the adapters use."""

    version: tuple[int, ...]
    module_class: type[Any]
    """`BoundedModule`, or a subclass of it that works on the torch at hand."""
    tensor_class: type[Any]
    perturbation_class: type[Any]

    @property
    def legacy(self) -> bool:
        """True for the releases before 0.4, which need the loans of this module."""
        return is_legacy(self.version)

    @contextlib.contextmanager
    def tracing(self, refused: list[str]) -> Iterator[None]:
        """Everything that a model's conversion needs, and silence; operators that it refuses are added to `refused`.

        Tracing warns about every Python branch on a tensor, and about its own deprecation, and the backend logs and
        prints. A mistraced branch is found by comparing the result with the model.
        """
        log = logging.getLogger("auto_LiRPA")
        handler = _RefusedOperators(refused)
        utils = logging.getLogger("auto_LiRPA.utils")
        with _lock, contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if self.legacy:
                stack.enter_context(_attribute(torch._C.Node, "__getitem__", _node_attribute))
                stack.enter_context(_tangents_kept())
            for logger in (log, utils):
                stack.enter_context(_only_handler(logger, handler))
            yield


def is_legacy(version: tuple[int, ...]) -> bool:
    """Whether this version needs what current torch and numpy no longer have."""
    return version < (0, 4)


def parse_version(text: str) -> tuple[int, ...]:
    """`"0.7.1"` as (0, 7, 1); anything after the leading numbers is left out."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def load() -> LiRPA:
    """The installed auto_LiRPA, imported on the first call.

    Raises PluginError with the command that installs it where it is missing or cannot be imported.
    """
    global _loaded
    with _lock:
        if _loaded is None:
            package = sys.modules.get("auto_LiRPA") or _import()
            _loaded = _described(package)
        return _loaded


def _import() -> types.ModuleType:
    version = _installed_version()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_process_untouched())
            stack.enter_context(_no_folder())
            if is_legacy(version):
                stack.enter_context(_loans_for_import())
            return importlib.import_module("auto_LiRPA")
    except ImportError as error:
        raise PluginError(f"auto_LiRPA cannot be imported ({error}); install it: {BACKEND.install}") from error


def _installed_version() -> tuple[int, ...]:
    return parse_version(imported_version("auto_LiRPA") or "0.7")


def _described(package: types.ModuleType) -> LiRPA:
    version = parse_version(str(getattr(package, "__version__", "0.7")))
    module_class = package.BoundedModule
    if is_legacy(version):
        module_class = _with_current_named_members(module_class)
    return LiRPA(version, module_class, package.BoundedTensor, package.PerturbationLpNorm)


def _with_current_named_members(base: type[Any]) -> type[Any]:
    class BoundedModule(base):  # type: ignore[misc]
        def _named_members(self, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_: Any) -> Any:
            # torch 2 passes remove_duplicate, which 0.3 does not know; it always removes them.
            return base._named_members(self, get_members_fn, prefix, recurse)

    return BoundedModule


@contextlib.contextmanager
def _process_untouched() -> Iterator[None]:
    """Restores warning filters, the levels of loggers, the root handlers and the JIT's flags; swallows prints."""
    root = logging.getLogger()
    handlers = list(root.handlers)
    levels = [(logger, logger.level) for logger in (root, logging.getLogger("auto_LiRPA.utils"))]
    # A setter is the only way to read its flag; what it was set to here is overwritten by the import.
    flags = [
        (setter, setter(True)) for setter in (torch._C._jit_set_profiling_executor, torch._C._jit_set_profiling_mode)
    ]
    try:
        # Recorded, not ignored: the import itself sets a filter in front of ours.
        with warnings.catch_warnings(record=True), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)
        for logger, level in levels:
            logger.setLevel(level)
        for setter, value in flags:
            setter(value)


@contextlib.contextmanager
def _loans_for_import() -> Iterator[None]:
    """Lends what 0.3 looks for while it is imported: a numpy module and a torch function that have moved."""
    import torch.onnx.symbolic_helper as symbolic_helper

    with contextlib.ExitStack() as stack:
        sets = types.ModuleType("numpy.lib.arraysetops")
        sets.isin = np.isin  # type: ignore[attr-defined]
        stack.enter_context(_module("numpy.lib.arraysetops", sets))
        if not hasattr(symbolic_helper, "_set_opset_version"):
            stack.enter_context(_attribute(symbolic_helper, "_set_opset_version", _set_opset_version))
        yield


@contextlib.contextmanager
def _no_folder() -> Iterator[None]:
    """The package creates the folder that `appdirs` names, in the user's home, unless there is one: none is made."""
    try:
        appdirs = importlib.import_module("appdirs")
    except ImportError:
        yield  # auto_LiRPA's own import then names what is missing
        return
    real = appdirs.user_data_dir
    with _attribute(appdirs, "user_data_dir", lambda *_: "."):
        yield
    importlib.import_module("auto_LiRPA.utils").user_data_dir = real("auto_LiRPA")  # type: ignore[attr-defined]


def _set_opset_version(version: int) -> None:
    try:
        where = importlib.import_module("torch.onnx._internal.torchscript_exporter._globals")
    except ImportError:
        where = importlib.import_module("torch.onnx._globals")
    where.GLOBALS.export_onnx_opset_version = version


def _node_attribute(node: Any, key: str) -> Any:
    """`node[key]` of a JIT graph, which torch had until 2.0."""
    return getattr(node, node.kindOf(key))(key)


@contextlib.contextmanager
def _tangents_kept() -> Iterator[None]:
    """Computes each table of tangents of an S-shaped function once; 0.3 does so for each layer, in .1 s and more."""
    activation = importlib.import_module("auto_LiRPA.operators.activation").BoundTanh
    compute = activation.precompute_relaxation

    def lookup(node: Any, name: str, func: Any, dfunc: Any, x_limit: float = 500) -> None:
        key = (name, x_limit, torch.get_default_dtype(), torch.empty(0, device=node.device).device)
        if key not in _tangents:
            compute(node, name, func, dfunc, x_limit)
            _tangents[key] = {made: getattr(node, made) for made in _TABLES}
        for made, value in _tangents[key].items():
            setattr(node, made, value.clone() if isinstance(value, torch.Tensor) else value)

    with _attribute(activation, "precompute_relaxation", lookup):
        yield


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    absent = object()
    before = owner.__dict__.get(name, absent)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextlib.contextmanager
def _module(name: str, module: types.ModuleType) -> Iterator[None]:
    before = sys.modules.get(name)
    sys.modules[name] = module if before is None else before
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop(name, None)


class _RefusedOperators(logging.Handler):
    """Collects the operators that the conversion logs as unsupported."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def emit(self, record: logging.LogRecord) -> None:
        arguments = record.args if isinstance(record.args, tuple) else (record.args,)
        for argument in arguments:
            if (operator := getattr(argument, "op", None)) is not None:
                self.names.append(str(operator).split("::")[-1])


@contextlib.contextmanager
def _only_handler(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
