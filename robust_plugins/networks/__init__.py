"""Small named networks, and models from files."""

from __future__ import annotations

from robust_plugins.networks.files import load_weights
from robust_plugins.networks.loading import is_file, load_model, model, models
from robust_plugins.networks.normalised import normalised
from robust_plugins.networks.training import train
from robust_plugins.networks.zoo import cnn, linear, mlp
from robust_plugins.registry.hookspecs import Register, hookimpl

__all__ = ["is_file", "load_model", "load_weights", "model", "models", "normalised", "train"]


@hookimpl
def register_models(register: Register) -> None:
    """Registers the networks of the package."""
    register("linear", linear)
    register("mlp", mlp)
    register("cnn", cnn)
