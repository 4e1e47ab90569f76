"""The rules of the engine: what each layer does to an interval, forward, backward, and as lines.

Importing this package registers them; `robust_plugins.intervals.rules.registry` says how to add one.
"""

from robust_plugins.intervals.rules import (
    activations,
    along_axes,
    bilinear,
    contractions,
    functions,
    less_common_activations,
    linear,
    normalisation,
    pairs,
    prelu,
    ranking,
    selection,
    softmax,
    structure,
    transposed,
    windowed,
)

__all__ = [
    "activations",
    "along_axes",
    "bilinear",
    "contractions",
    "functions",
    "less_common_activations",
    "linear",
    "normalisation",
    "pairs",
    "prelu",
    "ranking",
    "selection",
    "softmax",
    "structure",
    "transposed",
    "windowed",
]
