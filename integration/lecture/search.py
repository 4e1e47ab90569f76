"""An attack as a search in the ball, on a slice of two dimensions through one image.

    python -m integration.lecture.search [--data ../shared/data/mnist] [--images 200] [--eps 0.1] [--seed 0] [--out DIR]

The slice is the plane through the image, the step of FGSM and the point where PGD ends. Drawn are the margin over it,
its zero line, the ball, and the ways of FGSM, of PGD (40 steps of eps / 10, projected onto the plane) and of the
bisection of the radius. What they do out of the plane is not seen. The image is the first that PGD fools at this
radius and FGSM does not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.attack_networks import Subject, subject
from integration.lecture.parts import DATA, SEED, Option, Part, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="images", default=200, quick=20, help="among how many images one is looked for"),
    Option(name="eps", default=0.1, help="the radius of the ball"),
    Option(name="updates", default=1875, quick=100, help="batches of the network's training"),
)  # fmt: skip
CLIP = (0.0, 1.0)
BLUE, ORANGE, GREEN = COLOURS[:3]


@dataclass(frozen=True)
class Slice:
    """A plane through an image, and the ways of attacks in it; coordinates are in units of eps."""

    eps: float
    axes: Tensor
    """Two orthogonal directions, of length eps in the largest coordinate: (2, *features)."""
    paths: dict[str, Tensor]
    side: Tensor
    margins: Tensor
    """Above zero where the image is no longer classified as it was."""
    inside: Tensor
    """Where the plane lies in the ball, whatever the range of inputs."""


def flat_slice(subject: Subject, image: int, eps: float, *, points: int = 121) -> Slice:
    """The plane through an image, its FGSM step and the end of PGD."""
    model, x, y = subject.model, subject.x[image : image + 1], subject.y[image : image + 1]
    ball = rp.Linf(eps=eps, clip=CLIP)
    one = ball.project(x + eps * gradient(model, x, y).sign(), x)
    pgd = [x]
    for _ in range(40):
        pgd.append(ball.project(pgd[-1] + eps / 10 * gradient(model, pgd[-1], y).sign(), x))
    smaller = rp.minimal("rp:margin-pgd(steps=20)")(model, x, y, rp.Linf(eps=0.5, clip=CLIP), seed=0)
    first = (one - x).flatten()
    second = (pgd[-1] - x).flatten()
    second = second - (second @ first) / (first @ first) * first
    second = second / second.abs().max() * eps
    basis = torch.stack((first, second))

    def at(z: Tensor) -> Tensor:
        """Coordinates of the nearest point of the plane."""
        return (basis @ (z - x).flatten()) / basis.square().sum(1)

    paths = {
        "FGSM": torch.stack([at(x), at(one)]),
        "PGD": torch.stack([at(p) for p in pgd]),
        "radius bisected": torch.stack([at(x), at(smaller.x_adv)]),
    }
    reach = 1.1 * max(1.4, *(float(way.max()) for way in paths.values()))
    side = torch.linspace(-reach / 2, reach, points)
    grid = torch.cartesian_prod(side, side) @ basis
    z = x + grid.view(-1, *x.shape[1:])
    logits = model(z)
    own = logits[:, int(y)]
    margins = logits.scatter(1, y.expand(len(z), 1), -torch.inf).amax(1) - own
    inside = rp.Linf(eps=eps, clip=None).contains(z, x.expand_as(z))
    return Slice(eps, basis, paths, side, margins.view(points, points), inside.view(points, points))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    z = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
    return found


def draw(plane: Slice) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.7), layout="constrained")
    axes = figure.subplots()
    side, margins = plane.side.numpy(), plane.margins.T.numpy()
    limit = float(plane.margins.abs().max())
    colours = {"cmap": "PuOr", "vmin": -limit, "vmax": limit, "shading": "gouraud", "rasterized": True}
    shown = axes.pcolormesh(side, side, margins, **colours)
    axes.contour(side, side, margins, levels=[0.0], colors="black", linewidths=2)
    axes.contour(side, side, plane.inside.T.double().numpy(), levels=[0.5], colors="black", linestyles="dotted")
    styles: dict[str, dict[str, Any]] = {
        "FGSM": {"color": ORANGE, "marker": "s"},
        "PGD": {"color": BLUE, "marker": "o", "markersize": 3},
        "radius bisected": {"color": GREEN, "marker": "D", "linestyle": "dashed"},
    }
    for name, way in plane.paths.items():
        axes.plot(*way.T.numpy(), label=name, linewidth=1.8, **styles[name])
    axes.plot(0, 0, marker="*", color="black", markersize=12, linestyle="none", label="the image")
    axes.set(xlabel="along the step of FGSM (units of eps)", ylabel="towards the end of PGD (units of eps)")
    axes.set_aspect("equal")
    figure.colorbar(shown, ax=axes, label="margin of the wrong class (logits)", shrink=0.8)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, handletextpad=0.4, columnspacing=1.2)
    return figure


def parting(subject: Subject, eps: float) -> int:
    """The first image that PGD fools at this radius and FGSM does not, or the first one."""
    ball = rp.Linf(eps=eps, clip=CLIP)
    one, many = (
        rp.attack(name)(subject.model, subject.x, subject.y, ball, seed=0).success for name in ("rp:fgsm", "rp:pgd")
    )
    apart = (many & ~one).nonzero().flatten().tolist()
    return int((apart or [0])[0])


def make(options: argparse.Namespace) -> Part:
    networks = options.out.parent / "networks"
    attacked = subject(options.data, networks, images=options.images, seed=options.seed, updates=options.updates)
    image = parting(attacked, options.eps)
    plane = flat_slice(attacked, image, options.eps)
    ends = {name: float(_margin(plane, way[-1])) for name, way in plane.paths.items()}
    caption = (
        f"Image {image}, a {int(attacked.y[image])}, at the star. Solid line: the decision changes; dotted: the ball "
        f"of eps = {options.eps:g}, cut by the plane, onto which all ways are projected. The margin there is "
        f"{ends['FGSM']:.2f} at the end of FGSM, and {ends['PGD']:.2f} at that of PGD: positive is another decision."
    )
    return Part(
        title="An attack is a search in the ball", data=f"{attacked.title}.",
        sentence="Somewhere in the ball around an image the decision may change; FGSM goes to a corner of it in one "
        "step, PGD looks again after every step, and the bisection finds the smallest ball in which PGD succeeds.",
        pictures=(picture(draw(plane), "search", caption),),
    )  # fmt: skip


def _margin(plane: Slice, point: Tensor) -> Tensor:
    i, j = ((plane.side - coordinate).abs().argmin() for coordinate in point)
    return plane.margins[i, j]


def main(arguments: Sequence[str] | None = None) -> None:
    run("search", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
