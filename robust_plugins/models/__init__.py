"""Small named networks, and models from files."""

from __future__ import annotations

from robust_plugins.hookspecs import Register, hookimpl
from robust_plugins.models.files import load_weights
from robust_plugins.models.loading import is_file, load_model, model
from robust_plugins.models.training import train
from robust_plugins.models.zoo import cnn, linear, mlp

__all__ = ["is_file", "load_model", "load_weights", "model", "train"]


@hookimpl
def register_models(register: Register) -> None:
    """Registers the networks of the package."""
    register("linear", linear)
    register("mlp", mlp)
    register("cnn", cnn)
