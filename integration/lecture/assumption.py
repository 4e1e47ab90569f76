"""When the assumption breaks: the lecture's pictures of one step, of many, and of an attack as a search.

    python -m integration.lecture.assumption [--data ../shared/data/mnist] [--images 200] [--seed 0] [--out DIR]

FGSM takes one step of size eps along the gradient's signs, which assumes that the network is linear that far. Prints
and draws how many images it fools as eps grows, beside PGD, which looks again after every step, on one network that
was trained without attacks. Where the curves part, the assumption has broken.

The second picture is the slice of input space through one image, in the plane of the FGSM step and of the point where
PGD ends: the margin over it, its zero line, the ball, and the ways of FGSM, of PGD (40 steps of eps / 10, projected
onto the plane) and of the bisection of the radius. What they do out of the plane is not seen.

Writes assumption.csv, assumption.svg and search.svg to `--out` (default out/assumption), and keeps the network there.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robust_plugins as rp

sys.path.insert(0, str(Path(__file__).parent))
from attack_networks import Subject, subject

RADII = tuple(round(0.02 * k, 2) for k in range(16))
CLIP = (0.0, 1.0)
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Of Okabe and Ito's palette, which the colour-blind can tell apart."""
ATTACKS = {"FGSM, one step": "rp:fgsm", "PGD, 40 steps": "rp:pgd(steps=40)"}


def curve(subject: Subject, seed: int) -> dict[str, list[float]]:
    """The share of images that each attack fools at each radius."""
    x, y, start = subject.x, subject.y, rp.Linf(eps=0.0, clip=CLIP)
    found = {}
    for title, name in ATTACKS.items():
        results = rp.attack(name)(subject.model, x, y, start, eps=RADII, seed=seed)
        found[title] = [result.success.double().mean().item() for result in results]
    return found


def draw_curve(shares: dict[str, list[float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (title, share), colour, marker in zip(shares.items(), (ORANGE, BLUE), "so", strict=True):
        axes.plot(RADII, [100 * s for s in share], color=colour, marker=marker, markersize=4, label=title)
    axes.set(xlabel="eps (L-infinity, inputs in [0, 1])", ylabel="images fooled (%)", ylim=(-3, 103))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


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


def draw_slice(plane: Slice, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
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
    figure.colorbar(shown, ax=axes, label="margin of the wrong class (logits)")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.14), ncols=4, frameon=False, fontsize="small")
    axes.set_title(f"solid line: the decision changes; dotted: the ball of eps = {plane.eps:g}", fontsize="medium")
    figure.savefig(path, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/assumption"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    attacked = subject(options.data, options.out, images=options.images, seed=options.seed)
    shares = curve(attacked, options.seed)
    with (options.out / "assumption.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("eps", *shares), *zip(RADII, *shares.values(), strict=True)])
    draw_curve(shares, options.out / "assumption.svg")
    first, second = shares.values()
    apart = max(range(len(RADII)), key=lambda k: second[k] - first[k])
    image, eps = parting(attacked, RADII[apart])
    draw_slice(flat_slice(attacked, image, eps), options.out / "search.svg")
    print(f"{len(attacked.x)} images, {attacked.title}.\n\n  eps   " + "   ".join(shares))
    for k, radius in enumerate(RADII):
        print(f"{radius:5.2f}   " + "   ".join(f"{100 * s[k]:{len(t)}.1f}" for t, s in shares.items()))
    print(f"\nThey part most at eps = {RADII[apart]:g}: {100 * first[apart]:.1f} % and {100 * second[apart]:.1f} %.")
    print(f"The pictures: {options.out / 'assumption.svg'}, and of image {image}: {options.out / 'search.svg'}")


def parting(subject: Subject, eps: float) -> tuple[int, float]:
    """The first image that PGD fools at this radius and FGSM does not, or the first one."""
    ball = rp.Linf(eps=eps, clip=CLIP)
    fooled = [rp.attack(name)(subject.model, subject.x, subject.y, ball, seed=0).success for name in ATTACKS.values()]
    apart = (fooled[1] & ~fooled[0]).nonzero().flatten().tolist()
    return (apart or [0])[0], eps


if __name__ == "__main__":
    main()
