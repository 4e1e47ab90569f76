"""The lecture's picture of half-moons: decision surfaces of networks trained for robust explanations.

    python -m integration.lecture.half_moons [--epochs 400] [--alpha 0.2] [--seed 0] [--out DIR]

One network for each eps_t, from the same initialisation. The larger the ball over which the explanation is to be
constant, the straighter the surface. A table says for each of them the accuracy, and over the ball of EPS what an
attack reaches and what is proved of the explanation's relative deviation, and the share of points for which it is
proved to be at most LINEAR: there the network is certifiably almost linear.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.parts import SEED, Option, Part, Table, picture, run
from robust_plugins.losses import Ramp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    SEED,
    Option(name="epochs", default=400, quick=20, help="of training, each of one batch"),
    Option(name="alpha", default=0.2, help="the weight of the explanation's width in training"),
    Option(name="samples", default=400, quick=50, help="points of the two moons"),
)
RADII = (0.0, 0.01, 0.05, 0.075, 0.1)
EPS = 0.05
LINEAR = 0.1


@dataclass(frozen=True)
class Surface:
    """One trained network, and what is known of its explanations over the ball of EPS."""

    eps: float
    model: nn.Module
    accuracy: float
    attacked: float
    proved: float
    linear: float


def moons(samples: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import make_moons

    x, y = make_moons(samples, noise=0.1, random_state=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def trained(x: Tensor, y: Tensor, eps: float, *, alpha: float, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    penalty = rp.GradientCertLoss(
        alpha=alpha, ball=rp.Linf(eps=eps, clip=None), of="margin", schedule=Ramp(start=0, end=0.6 * epochs)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if eps:
            loss = loss + penalty(model, x, y, epoch=epoch)
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


def surfaces(
    *,
    radii: tuple[float, ...] = RADII,
    samples: int = 400,
    alpha: float = 0.2,
    epochs: int = 400,
    seed: int = 0,
    attack: str = "gradient:corner-pgd",
) -> list[Surface]:
    x, y = moons(samples)
    found = []
    for eps in radii:
        model = trained(x, y, eps, alpha=alpha, epochs=epochs, seed=seed)
        components = [attack, "interval:relaxed"]
        ball = rp.Linf(eps=EPS, clip=None)
        table = rp.compare_explanations(model, x, y, ball, components, of="margin", k=1, seed=seed)
        if table.crossings:
            raise SystemExit(f"an attack contradicts a certificate: {table.crossings[0]}")
        low, high = table.deviation
        accuracy = (model(x).argmax(1) == y).double().mean().item()
        linear = (high <= LINEAR).double().mean().item()
        found.append(Surface(eps, model, accuracy, low.median().item(), high.median().item(), linear))
    return found


def draw(found: list[Surface], *, samples: int = 400) -> Figure:
    """The probability of the second moon over the plane, with the points, for each network."""
    from matplotlib.figure import Figure

    x, y = moons(samples)
    low, high = x.amin(0) - 0.5, x.amax(0) + 0.5
    grid = torch.cartesian_prod(*(torch.linspace(float(a), float(b), 120) for a, b in zip(low, high, strict=True)))
    figure = Figure(figsize=(2.3 * len(found) + 0.7, 2.9), layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    for axes, surface in zip(panels, found, strict=True):
        second = surface.model(grid).softmax(1)[:, 1].view(120, 120).T.numpy()
        extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        shown = axes.imshow(
            second, origin="lower", extent=extent, cmap="PuOr", vmin=0, vmax=1, aspect="auto", alpha=0.6
        )
        axes.contour(second, levels=[0.5], origin="lower", extent=extent, colors="black", linewidths=1.5)
        axes.scatter(*x.T.numpy(), c=y.numpy(), cmap="PuOr", s=7, edgecolors="black", linewidths=0.3)
        axes.set_title(
            f"eps_t = {surface.eps:g}\naccuracy {surface.accuracy:.3f}\nproved linear {surface.linear:.2f}", fontsize=9
        )
        axes.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=list(panels), label="probability of class 1")
    return figure


def make(options: argparse.Namespace) -> Part:
    found = surfaces(alpha=options.alpha, epochs=options.epochs, seed=options.seed, samples=options.samples)
    table = Table(
        name="half_moons", columns=("eps_t", "accuracy", "deviation, attacked", "deviation, proved", "proved linear"),
        rows=tuple(
            (f"{s.eps:g}", f"{s.accuracy:.3f}", f"{s.attacked:.4f}", f"{s.proved:.4f}", f"{s.linear:.3f}")
            for s in found
        ),
        caption=f"The relative deviation of the explanation over eps = {EPS:g}: medians over the points of what an "
        f"attack reaches and what is proved; and the share of points for which at most {LINEAR:g} is proved.",
    )  # fmt: skip
    return Part(
        title="Networks trained for robust explanations become linear where it matters",
        sentence="The larger the ball over which the gradient is trained to be constant, the straighter the border "
        "between the classes, and at nearly all points the network is then proved to be almost linear.",
        data=f"two half-moons of {options.samples} points in all; networks 2-64-64-2.",
        pictures=(picture(draw(found, samples=options.samples), "half_moons",
                          "One network for each eps_t, trained from the same initial weights. Black: the decision."),),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("half_moons", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
