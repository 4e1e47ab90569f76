"""The lecture's first picture: an image, the noise x 0.07, and the image that is misclassified.

    python -m integration.lecture.adversarial_example [--models ../shared/models/eran] [--data ../shared/data/mnist]
        [--eps 0.07] [--seed 0] [--out DIR]

`--models` holds a published network and images of CIFAR-10 (of ERAN's repository); without it the picture is of a digit
of MNIST and of a network trained on such digits. The noise is the sign of the loss's gradient at the image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.attack_networks import subject
from integration.lecture.certification_networks import MissingFileError, load
from integration.lecture.parts import DATA, SEED, Option, Part, picture, run
from robust_plugins.harness.pictures import show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="models", default=Path("../shared/models/eran"), kind=Path, help="the folder of published networks"),
    Option(name="eps", default=0.07, help="what the noise is multiplied by"),
    Option(name="updates", default=1875, quick=100, help="batches of the network's training, where one is trained"),
)  # fmt: skip
CIFAR = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Example:
    """An image that is classified correctly, the noise, and the image that is not; and what the network says."""

    x: Tensor
    noise: Tensor
    x_adv: Tensor
    said: tuple[str, str]
    data: str


def found(model: nn.Module, x: Tensor, y: Tensor, eps: float, names: Sequence[str], data: str) -> Example:
    """The first image whose decision the step changes; the first one where none does."""
    z = x.clone().requires_grad_()
    logits = model(z)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), z)
    result = rp.attack("rp:fgsm")(model, x, y, rp.Linf(eps=eps, clip=(0.0, 1.0)), seed=0)
    right = logits.argmax(1) == y
    i = int((right & result.success).double().argmax())
    said = []
    for scores in (logits[i].detach(), result.logits[i]):
        share, decision = scores.softmax(0).max(0)
        said.append(f"{names[int(decision)]}, {100 * share.item():.0f} %")
    return Example(x[i], gradient[i].sign(), result.x_adv[i], (said[0], said[1]), data)


def draw(example: Example, eps: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 2.05), layout="constrained")
    panels = figure.subplots(1, 3)
    show_image(panels[0], example.x, f"the image\n{example.said[0]}", (0, 1))
    show_image(panels[1], example.noise, f"the noise\nx {eps:g}", (-1, 1))
    show_image(panels[2], example.x_adv, f"their sum\n{example.said[1]}", (0, 1))
    for panel, sign in zip(panels[1:], "+=", strict=True):
        panel.set_ylabel(sign, rotation=0, fontsize=16, labelpad=9, va="center")
    return figure


def make(options: argparse.Namespace) -> Part:
    try:
        published = load("cifar-conv-small", options.models, 100)
        about = "an image of CIFAR-10; the published network CIFAR ConvSmall, trained with PGD at eps = 2/255."
        example = found(published.model, published.x, published.y, options.eps, CIFAR, about)
    except MissingFileError:
        networks = options.out.parent / "networks"
        own = subject(options.data, networks, images=200, seed=options.seed, updates=options.updates)
        about = f"no natural image is at hand, so this is a digit; {own.title}."
        example = found(own.model, own.x, own.y, options.eps, [str(i) for i in range(10)], about)
    caption = (
        f"Every value moves by {options.eps:g} of its range at most. Below the titles: what the network says, and how "
        "sure it is."
    )
    return Part(
        title="A small noise, another decision", data=example.data,
        sentence="A noise that is small in every pixel, and chosen by the gradient, changes what the network sees, and "
        "it can be nearly as sure of that as before.",
        pictures=(picture(draw(example, options.eps), "adversarial_example", caption),),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("adversarial_example", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
