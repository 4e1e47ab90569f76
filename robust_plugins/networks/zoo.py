"""The networks of the zoo: plain `nn.Sequential`s with PyTorch's initialisation, so seed torch before the call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.parameters import check_count


def linear(*, input_shape: Sequence[int], classes: int) -> nn.Sequential:
    """One linear layer from the flattened input, of shape `input_shape`, to a logit for each of the `classes`."""
    return mlp(input_shape=input_shape, classes=classes, widths=())


def mlp(*, input_shape: Sequence[int], classes: int, widths: Sequence[int] = (256, 128)) -> nn.Sequential:
    """A multilayer perceptron with ReLU on the flattened input: 784-256-128-10 on MNIST, as `widths` says.

    `input_shape` is that of a sample, and the last layer has a logit for each of the `classes`.
    Raises ArgumentError for a width, an input shape or a number of classes that no network can have.
    """
    _check(input_shape, classes)
    if not isinstance(widths, Sequence) or not all(isinstance(width, int) and width > 0 for width in widths):
        raise ArgumentError(
            "widths", repr(widths), accepted="positive integers, one per hidden layer", hint="For example (256, 128)."
        )
    sizes = [math.prod(input_shape), *widths]
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], classes))


def cnn(*, input_shape: Sequence[int], classes: int, width: int = 16) -> nn.Sequential:
    """The small convolutional network of the verification literature ("ConvSmall"), with ReLU.

    Convolutions of `width` and `2 * width` filters, 4x4 with stride 2, then 100 hidden units. They are not padded,
    so that published weights fit; images with a side below 16, which would shrink to nothing, are padded by one
    pixel. There is a logit for each of the `classes`. Raises ArgumentError unless `input_shape` is (channels, height,
    width) with sides of at least 4.
    """
    _check(input_shape, classes)
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ArgumentError(
            "input_shape",
            tuple(input_shape),
            accepted="(channels, height, width) with sides of at least 4 pixels",
            hint="Use 'mlp' for tables.",
        )
    check_count("width", width)
    channels, *sides = input_shape
    padding = 1 if min(sides) < 16 else 0
    height, breadth = (_halved(_halved(side, padding), padding) for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * height * breadth, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def _halved(side: int, padding: int) -> int:
    """The side of the image after a convolution of 4x4 with stride 2."""
    return (side + 2 * padding - 4) // 2 + 1


def _check(input_shape: Sequence[int], classes: int) -> None:
    if (
        not isinstance(input_shape, Sequence)
        or not input_shape
        or not all(isinstance(side, int) and side > 0 for side in input_shape)
    ):
        raise ArgumentError(
            "input_shape",
            repr(input_shape),
            accepted="the positive sizes of one input, without the batch axis",
            hint="For example (1, 28, 28), or dataset.input_shape.",
        )
    check_count("classes", classes, least=2)
