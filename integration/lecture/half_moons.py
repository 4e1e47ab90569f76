"""The lecture's picture of half-moons: decision surfaces of networks trained for robust explanations.

    python integration/lecture/half_moons.py [--out half_moons.svg] [--epochs 400] [--alpha 0.2] [--seed 0]

One network for each eps_t, from the same initialisation. The larger the ball over which the explanation is to be
constant, the straighter the surface. Prints for each of them the accuracy, and over the ball of EPS what an attack
reaches and what is proved of the explanation's relative deviation, and the share of points for which it is proved to
be at most LINEAR: there the network is certifiably almost linear.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses import Ramp

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


def draw(found: list[Surface], path: Path, *, samples: int = 400) -> None:
    """The probability of the second moon over the plane, with the points, for each network."""
    from matplotlib.figure import Figure

    x, y = moons(samples)
    low, high = x.amin(0) - 0.5, x.amax(0) + 0.5
    grid = torch.cartesian_prod(*(torch.linspace(float(a), float(b), 200) for a, b in zip(low, high, strict=True)))
    figure = Figure(figsize=(3 * len(found), 3.4), layout="constrained")
    for axes, surface in zip(figure.subplots(1, len(found), sharex=True, sharey=True), found, strict=True):
        second = surface.model(grid).softmax(1)[:, 1].view(200, 200).T.numpy()
        extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        axes.imshow(second, origin="lower", extent=extent, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto", alpha=0.6)
        axes.contour(second, levels=[0.5], origin="lower", extent=extent, colors="black", linewidths=1.5)
        axes.scatter(*x.T.numpy(), c=y.numpy(), cmap="RdBu_r", s=9, edgecolors="black", linewidths=0.3)
        axes.set_title(
            f"eps_t = {surface.eps}\naccuracy {surface.accuracy:.3f}, proved linear {surface.linear:.2f}", fontsize=10
        )
        axes.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/half_moons.svg"))
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = surfaces(alpha=arguments.alpha, epochs=arguments.epochs, seed=arguments.seed)
    draw(found, arguments.out)
    print(f"deviation of the explanation over eps = {EPS}: median attacked, median proved; proved <= {LINEAR}")
    for s in found:
        print(
            f"eps_t {s.eps:<6} accuracy {s.accuracy:.3f}  attacked {s.attacked:.4f}  proved {s.proved:.4f}  "
            f"linear {s.linear:.3f}"
        )
    print(f"The picture: {arguments.out}")


if __name__ == "__main__":
    main()
