"""Interval bound propagation through a network: boxes that grow from layer to layer, and what they certify.

    python -m integration.lecture.ibp_network [--data ../shared/data/mnist] [--images 200] [--seed 0] [--out DIR]

The first pictures are of a network 2-2-2-2: the set of all outputs of each layer, and the box that IBP has for it. The
last one is the notebook's network on MNIST: the accuracy that PGD leaves, and the shares that IBP certifies by boxes of
logits, by boxes of margins (the last layer merged with the differences), and CROWN, as the radius grows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.attack_networks import called, mnist
from integration.lecture.notebook_network import certified_by_boxes, logit_boxes, trained
from integration.lecture.parts import DATA, SEED, Option, Part, Table, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, PANEL
from robust_plugins.intervals import Interval, trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="images", default=200, quick=10, help="how many test images"),
    Option(name="epochs", default=5, quick=1, help="of the network's training"),
    Option(name="train", default=60_000, quick=500, help="how many training images at most"),
)  # fmt: skip
RADII = (0.0, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03)
BOX = Interval(torch.tensor([[0.2, -0.6]]), torch.tensor([[1.0, 0.2]]))


def small() -> nn.Sequential:
    """A network 2-2-2-2 whose weights are chosen so that its pictures can be seen."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    weights = ([[1.0, -1.0], [0.8, 1.2]], [[1.0, 0.7], [-0.9, 1.0]], [[1.0, -0.8], [0.6, 1.0]])
    biases = ([0.0, 0.2], [0.1, 0.8], [0.0, -0.3])
    with torch.no_grad():
        for layer, weight, bias in zip(model[::2], weights, biases, strict=True):
            layer.weight.copy_(torch.tensor(weight))  # type: ignore[operator]
            layer.bias.copy_(torch.tensor(bias))  # type: ignore[operator]
    return model


def layers(model: nn.Sequential, box: Interval, points: int = 90) -> list[tuple[str, Tensor, Interval]]:
    """The input and each layer's output: its name, points of the set, and the interval around it."""
    bounds = trace(model, box.lower).forward(box)
    low, high = box.lower[0].tolist(), box.upper[0].tolist()
    z = torch.cartesian_prod(*(torch.linspace(a, b, points) for a, b in zip(low, high, strict=True)))
    found = [("the input", z, bounds[0])]
    names = ("layer 1", "its ReLU", "layer 2", "its ReLU", "the logits")
    with torch.no_grad():
        for name, layer, bound in zip(names, model, bounds[1:], strict=True):
            z = layer(z)
            found.append((name, z, bound))
    return found


def draw_layer(name: str, points: Tensor, bound: Interval) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(2.3, 2.1), layout="constrained")
    axes = figure.subplots()
    axes.plot(*points.T.tolist(), linestyle="", marker=".", markersize=1.5, color=COLOURS[0], rasterized=True)
    low, size = bound.lower[0], (bound.upper - bound.lower)[0]
    axes.add_patch(
        Rectangle(low.tolist(), *size.tolist(), fill=False, edgecolor=COLOURS[1], linestyle="--", linewidth=1.4)
    )
    axes.margins(0.12)
    axes.autoscale_view()
    axes.set_title(name)
    return figure


def shares(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, list[float]]:
    """What is left by PGD, and certified, at each radius."""
    found: dict[str, list[float]] = {name: [] for name in ("PGD", "CROWN", "IBP, margins", "IBP, logits")}
    for eps in RADII:
        ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
        answers = {
            "PGD": ~rp.attack("rp:pgd(steps=20)")(model, x, y, ball, seed=0).success,
            "CROWN": rp.certifier("interval:crown")(model, x, y, ball).certified,
            "IBP, margins": rp.certifier("interval:ibp")(model, x, y, ball).certified,
            "IBP, logits": certified_by_boxes(logit_boxes(model, x, ball), y),
        }
        for name, answer in answers.items():
            found[name].append(answer.double().mean().item())
    return found


def draw_shares(found: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0], 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, share) in enumerate(found.items()):
        mark, line, word = ("v", "--", "attacked") if name == "PGD" else ("^", "-", "certified")
        axes.plot(RADII, [100 * s for s in share], color=COLOURS[number], marker=mark, markersize=4, linestyle=line,
                  label=f"{name} ({word})")  # fmt: skip
    axes.set(xlabel="eps (L-infinity, inputs in [0, 1])", ylabel="test images (%)", ylim=(-3, 103))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def make(options: argparse.Namespace) -> Part:
    data = mnist(options.data)
    count = min(len(data.x_train), options.train)
    networks = options.out.parent / "networks"
    model = trained(data, networks, epochs=options.epochs, seed=options.seed, samples=count)
    found = shares(model, data.x_test[: options.images], data.y_test[: options.images])
    boxes = layers(small(), BOX)
    pictures = [picture(draw_layer(*layer), f"layer_{i}", "") for i, layer in enumerate(boxes)]
    curves = picture(draw_shares(found), "ibp_shares", "The notebook's network on MNIST, trained without attacks.")
    table = Table(
        name="ibp_network", columns=("eps", *(f"{name} %" for name in found)),
        rows=tuple(
            (f"{eps:g}", *(f"{100 * share[k]:.1f}" for share in found.values())) for k, eps in enumerate(RADII)
        ),
        caption=f"Shares of {options.images} test images: PGD leaves at least what is certified.",
    )  # fmt: skip
    return Part(
        title="Interval bound propagation through a network",
        sentence="Each box (orange) holds all that its layer can say (blue), but the next layer starts from the whole "
        "box: boxes grow from layer to layer, and for a network that was not trained for it they certify small radii "
        "alone.",
        data=f"a network 2-2-2-2 with chosen weights; {called(data)}, a network 784-256-128-10.",
        pictures=(*pictures, curves), tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("ibp_network", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
