"""When the assumption of FGSM breaks: one step beside many, and the loss beside its tangent.

    python -m integration.lecture.assumption [--data ../shared/data/mnist] [--images 200] [--seed 0] [--out DIR]

FGSM takes one step of size eps along the gradient's signs, which assumes that the network is linear that far. Drawn is
how many images it fools as eps grows, beside PGD, which looks again after every step, on one network that was trained
without attacks: where the curves part, the assumption has broken. The second picture shows why: the loss along the
step, beside the tangent that FGSM follows, the medians over all images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.lecture.attack_networks import Subject, subject
from integration.lecture.parts import DATA, SEED, Option, Part, Table, percent, picture, run
from robust_plugins.benchmark.reporting.style import COLOURS, PANEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OPTIONS = (
    DATA, SEED,
    Option(name="images", default=200, quick=20, help="how many images, all classified correctly"),
    Option(name="updates", default=1875, quick=100, help="batches of the network's training"),
)  # fmt: skip
RADII = tuple(round(0.02 * k, 2) for k in range(16))
CLIP = (0.0, 1.0)
BLUE, ORANGE = COLOURS[:2]
ATTACKS = {"FGSM, one step": "rp:fgsm", "PGD, 40 steps": "rp:pgd(steps=40)"}


def curve(subject: Subject, seed: int) -> dict[str, list[float]]:
    """The share of images that each attack fools at each radius."""
    x, y, start = subject.x, subject.y, rp.Linf(eps=0.0, clip=CLIP)
    found = {}
    for title, name in ATTACKS.items():
        results = rp.attack(name)(subject.model, x, y, start, eps=RADII, seed=seed)
        found[title] = [result.success.double().mean().item() for result in results]
    return found


def along(subject: Subject) -> tuple[Tensor, Tensor]:
    """The margin of the wrong class along the step of FGSM, and its tangent: one row for each image, by radius.

    The range of inputs is left out of account, as FGSM's assumption does.
    """
    x = subject.x.clone().requires_grad_()
    here = _margin(subject.model, x, subject.y)
    (gradient,) = torch.autograd.grad(here.sum(), x)
    slope = gradient.abs().flatten(1).sum(1)
    steps = torch.tensor(RADII)
    found = [_margin(subject.model, x.detach() + eps * gradient.sign(), subject.y) for eps in RADII]
    return torch.stack(found, 1).detach(), here.detach()[:, None] + slope[:, None] * steps


def _margin(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = model(x)
    own = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own


def draw_curve(shares: dict[str, list[float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    for (title, share), colour, marker in zip(shares.items(), (ORANGE, BLUE), "so", strict=True):
        axes.plot(RADII, [100 * s for s in share], color=colour, marker=marker, markersize=4, label=title)
    axes.set(xlabel="eps (L-infinity, inputs in [0, 1])", ylabel="images fooled (%)", ylim=(-3, 103))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def draw_tangent(margins: Tensor, tangents: Tensor) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=PANEL, layout="constrained")
    axes = figure.subplots()
    for found, colour, style, label in (
        (tangents, ORANGE, "--", "its tangent, which FGSM follows"), (margins, BLUE, "-", "the margin of the wrong "
        "class")
    ):  # fmt: skip
        low, middle, high = found.quantile(torch.tensor([0.25, 0.5, 0.75]), 0)
        axes.plot(RADII, middle, color=colour, linestyle=style, label=label)
        axes.fill_between(RADII, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.set(xlabel="eps, along the signs of the gradient", ylabel="logits")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left")
    return figure


def make(options: argparse.Namespace) -> Part:
    networks = options.out.parent / "networks"
    attacked = subject(options.data, networks, images=options.images, seed=options.seed, updates=options.updates)
    shares = curve(attacked, options.seed)
    margins, tangents = along(attacked)
    first, second = shares.values()
    apart = max(range(len(RADII)), key=lambda k: second[k] - first[k])
    gap = (
        f"They part most at eps = {RADII[apart]:g}: {percent(first[apart])} of {len(attacked.x)} images fooled by "
        f"FGSM, {percent(second[apart])} by PGD."
    )
    table = Table(
        name="assumption", columns=("eps", *shares), caption="Images fooled, in per cent.",
        rows=tuple(
            (f"{eps:g}", *(f"{100 * share[k]:.1f}" for share in shares.values())) for k, eps in enumerate(RADII)
        ),
    )  # fmt: skip
    return Part(
        title="Why the assumption of FGSM breaks", data=f"{attacked.title}.",
        sentence="FGSM takes the network for linear as far as its step goes. It is right for small steps alone, and "
        "from then on attacks that look again find more.",
        pictures=(
            picture(draw_curve(shares), "assumption", gap),
            picture(draw_tangent(margins, tangents), "tangent",
                    "Medians and middle halves over all images: the longer the step, the less of what the gradient "
                    "promises comes true."),
        ),
        tables=(table,),
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    run("assumption", make, OPTIONS, arguments, describe=__doc__)


if __name__ == "__main__":
    main()
