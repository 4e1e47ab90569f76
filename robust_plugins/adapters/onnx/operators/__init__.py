"""The translators of single operators, by kind; importing this package registers them."""

from robust_plugins.adapters.onnx.operators import (  # noqa: F401
    activations,
    arithmetic,
    linear,
    normalisation,
    structure,
    windows,
)
