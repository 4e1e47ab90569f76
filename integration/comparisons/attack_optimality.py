"""How near attacks come to the exact critical radii, and what they cost.

    python -m integration.comparisons.attack_optimality [--part radii published contradictions] [--samples 20]
        [--attacks rp:margin-pgd rp:fmn ...] [--models ../shared/models/eran] [--write FILE]

- `radii`: six small networks, trained here. Their critical radii on L-infinity are found by branch and bound, and
  `milp:exact` where that leaves one open, on L2 by the walk through their linear regions in `exact_l2.py`, starting
  from the nearest input that any attack found; the radius of every attack is found by `rp.minimal`. The
  optimality of an attack is AttackBench's: the area above its curve of accuracy against the radius, up to the largest
  critical radius, over that above the exact curve. `exact / found` is the ratio of the areas below. Passes are forward
  and backward ones for each sample, over all radii; attacks that look for the smallest norm themselves are called once.
- `published`: on the first images that each published network classifies correctly, what the portfolio breaks, in
  CPU seconds beside ART's AutoAttack.
- `contradictions`: 1000 images on networks that were trained for interval bounds; no attack may break a certified one.

Attacks of libraries that are not installed are left out, and named. `attack_optimality.md` holds what was measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor, nn

import robust_plugins as rp
from integration.comparisons.exact_l2 import nearest_other_class
from integration.lecture.certification_networks import load

TOLERANCE = 1e-3
"""Relative: how closely the exact radii are bracketed."""

LARGEST = {"linf": 0.5, "l2": 4.0}
"""In these balls a radius is looked for."""

BISECTED_TO = 2e-4
"""How closely an attack's own radius is, in these."""

BALLS: dict[str, type[rp.Ball]] = {"linf": rp.Linf, "l2": rp.L2}
JUDGES = ("interval:branch-and-bound(timeout=30)", "milp:exact(timeout=30)")
"""Of radii on L-infinity, complete both: each is asked where those before it leave one open."""

SAID = {
    "linf": f"critical radii by {' and '.join(f'`{judge}`' for judge in JUDGES)}",
    "l2": "critical radii by the walk of `exact_l2.py`",
}

PORTFOLIO = "rp:auto(certifier=None)"
"""Without its certifier, whose passes would not be counted."""

BISECTED = (
    PORTFOLIO, "rp:margin-pgd", "rp:margin-pgd(targets=9)", "rp:apgd", "rp:apgd(loss='dlr', targets=9)", "rp:pgd",
    "rp:square", "art:fgsm", "art:pgd", "art:apgd-ce", "art:apgd-dlr", "art:mim", "art:square", "torchattacks:pgd",
    "torchattacks:apgd", "torchattacks:apgdt", "torchattacks:square", "foolbox:pgd",
)  # fmt: skip
PUBLISHED = ("rp:auto", "art:pgd", "art:auto")
ONCE = (
    "rp:fmn", "rp:ddn", "rp:pdpgd", "rp:cw-linf", "rp:cw-l2", "art:deepfool", "art:cw-l2", "torchattacks:cw",
    "torchattacks:deepfool", "foolbox:fmn", "foolbox:ddn", "foolbox:deepfool",
)  # fmt: skip

passes: Counter[str] = Counter()


class Counted(nn.Module):
    """Counts the samples that go through the network, forward and backward, and stays itself as it was."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        passes["passes"] += len(x)
        out = self.model(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: passes.update(passes=len(gradient)))
        return out


@dataclass(frozen=True, eq=False)
class Network:
    name: str
    model: nn.Sequential
    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Line:
    attack: str
    optimality: float
    ratio: float
    passes: float
    seconds: float


def networks(samples: int, wanted: list[str]) -> Iterator[Network]:
    """Six networks, and for each the first images of the test set that it classifies correctly."""
    for name, data_name, widths, recipe, eps in (
        ("digits 12-12", "digits", (12, 12), "standard", 0.0),
        ("digits 16-16, madry", "digits", (16, 16), "madry", 0.1),
        ("digits 16-16, ibp", "digits", (16, 16), "ibp", 0.1),
        ("digits 8-8-8", "digits", (8, 8, 8), "standard", 0.0),
        ("mnist5k 16", "mnist5k", (16,), "standard", 0.0),
        ("digits 24", "digits", (24,), "standard", 0.0),
    ):
        if wanted and not any(part in name for part in wanted):
            continue
        model, data = trained(data_name, widths, recipe, eps)
        with torch.no_grad():
            right = (model(data.x_test).argmax(1) == data.y_test).nonzero().flatten()[:samples]
        yield Network(name, model, data.x_test[right], data.y_test[right])


def trained(data_name: str, widths: tuple[int, ...], recipe: str, eps: float) -> tuple[nn.Sequential, rp.Dataset]:
    data = rp.dataset(data_name)
    torch.manual_seed(0)
    model = rp.model("mlp", input_shape=data.input_shape, classes=data.classes, widths=widths)
    epochs = 20
    if recipe == "standard":
        rp.train(model, data.x_train, data.y_train, epochs=epochs, seed=0)
        return model.eval(), data
    ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
    given = {"epochs": epochs} if recipe == "ibp" else {}
    loss = rp.recipe(recipe, ball=ball, **given)
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data.x_train, data.y_train), batch_size=64, shuffle=True,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rp.fit(model, batches, loss, optimizer=optimizer, epochs=epochs, progress=False)
    return model.eval(), data


def known(names: tuple[str, ...], ball: rp.Ball) -> tuple[dict[str, rp.Attack], list[str]]:
    """The attacks that are installed and take the ball, and the names of the others."""
    found: dict[str, rp.Attack] = {}
    missing = []
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)
    for name in names:
        try:
            attack = rp.attack(name)
            attack(model, x, torch.zeros(2, dtype=torch.long), ball)
            found[name] = attack
        except (rp.UnknownNameError, rp.PluginError) as error:
            missing.append(f"{name} ({str(error).split('.')[0][:60]})")
        except rp.ArgumentError:
            continue  # another norm
    return found, missing


def radii(network: Network, ball: rp.Ball, attack: rp.Attack, *, once: bool) -> tuple[Tensor, float, float]:
    """The smallest radius at which the attack breaks each sample, the largest one where it does at none."""
    model = Counted(network.model)
    passes.clear()
    start = time.process_time()
    nearest = attack if once else rp.minimal(attack, tolerance=BISECTED_TO)
    result = nearest(model, network.x, network.y, ball, seed=0)
    found = torch.where(result.success, result.distance, ball.largest)
    seconds = time.process_time() - start
    return found.double(), passes["passes"] / len(network.x), seconds / len(network.x)


def exact(network: Network, ball: rp.Ball, best: Tensor) -> tuple[Tensor, int]:
    """The critical radii, to within TOLERANCE of the nearest witness; and how many stayed undecided.

    An undecided sample has the distance of the nearest input that is known.
    """
    found, undecided = best.clone(), 0
    if isinstance(ball, rp.L2):
        for i in range(len(best)):
            between = nearest_other_class(
                network.model, network.x[i], int(network.y[i]), known=float(best[i]), clip=(0.0, 1.0)
            )
            found[i] = between.upper
            undecided += between.lower < (1 - TOLERANCE) * between.upper
        return found, undecided
    certifier = rp.cascade(JUDGES)
    for i in range(len(best)):
        low, high, step = 0.0, float(best[i]), TOLERANCE
        while high - low > TOLERANCE * high:
            radius = max(high * (1 - step), (low + high) / 2)
            answer = certifier(network.model, network.x[i : i + 1], network.y[i : i + 1], replace(ball, eps=radius))
            if bool(answer.certified[0]):
                low = radius
            elif answer.verdicts[0] is rp.Verdict.FALSIFIED:
                high = min(radius, float(ball.distance(answer.witness, network.x[i : i + 1])[0]))
                step *= 4
            else:
                undecided += 1
                break
        found[i] = high
    return found, undecided


def scored(found: Tensor, exact_radii: Tensor) -> tuple[float, float]:
    end = exact_radii.max()
    above = (end - found).clamp(min=0).sum() / (end - exact_radii).sum().clamp(min=1e-12)
    return float(above), float(exact_radii.sum() / found.sum())


def measure(norm: str, samples: int, wanted: list[str], parts: list[str], say: list[str]) -> None:
    ball = BALLS[norm](eps=LARGEST[norm], clip=(0.0, 1.0))
    bisected, absent = known(tuple(name for name in BISECTED if not wanted or name in wanted), ball)
    single, more = known(tuple(name for name in ONCE if not wanted or name in wanted), ball)
    totals: dict[str, list[Line]] = {}
    notes, titles = [], []
    for network in networks(samples, parts):
        measured: dict[str, tuple[Tensor, float, float]] = {}
        for name, attack in (bisected | single).items():
            measured[name] = radii(network, ball, attack, once=name in single)
            print(f"{network.name}, {norm}, {name}: {measured[name][1:]} passes, CPU s", file=sys.stderr, flush=True)
        best = torch.stack([found for found, _, _ in measured.values()]).amin(0)
        truth, undecided = exact(network, ball, best)
        titles.append(network.name)
        notes.append(f"{network.name}: mean {float(truth.mean()):.4f}, {undecided} of {len(truth)} undecided")
        print(notes[-1], file=sys.stderr, flush=True)
        for name, (found, number, seconds) in measured.items():
            line = Line(name, *scored(found, truth), number, seconds)
            totals.setdefault(name, []).append(line)
            print(f"{network.name}, {norm}: {line}", file=sys.stderr, flush=True)
    say += [
        f"\n## {norm}: {SAID[norm]}\n",
        "; ".join(notes) + ".\n",
        f"| attack | {' | '.join(titles)} | optimality: mean | exact / found | passes a sample | CPU s a sample |",
        "|---" * (len(titles) + 5) + "|",
    ]
    mean = {name: sum(line.optimality for line in lines) / len(lines) for name, lines in totals.items()}
    for name in sorted(totals, key=lambda n: -mean[n]):
        lines = totals[name]
        ratio, number, seconds = (
            sum(getattr(line, field) for line in lines) / len(lines) for field in ("ratio", "passes", "seconds")
        )
        each = " | ".join(f"{line.optimality:.3f}" for line in lines)
        say.append(f"| `{name}` | {each} | {mean[name]:.3f} | {ratio:.3f} | {number:.0f} | {seconds:.3f} |")
    if absent or more:
        say.append(f"\nNot installed: {', '.join(absent + more)}.")


def contradictions(say: list[str]) -> None:
    attacks = ["rp:margin-pgd(steps=20, targets=2)", "rp:fmn(steps=40)", "rp:apgd(steps=40)", "art:pgd"]
    certifiers = ["interval:ibp", "interval:crown"]
    say += [
        "\n## Certificates held against attacks: 1000 images\n",
        "| network | eps | certified | under attack | contradictions |",
        "|---|---|---|---|---|",
    ]
    for data_name, eps in (("digits", 0.1), ("mnist5k", 0.1)):
        model, data = trained(data_name, (64, 64), "ibp", eps)
        x = torch.cat((data.x_test, data.x_train))[:1000]
        y = torch.cat((data.y_test, data.y_train))[:1000]
        for radius in (eps / 2, eps):
            table = rp.compare(model, x, y, rp.Linf(eps=radius, clip=(0.0, 1.0)), attacks + certifiers, seed=0)
            high, low = table.bracket
            say.append(f"| {data_name} 64-64, ibp | {radius} | {low:.3f} | {high:.3f} | {len(table.crossings)} |")
            print(say[-1], file=sys.stderr, flush=True)


def published(folder: Path, images: int, wanted: list[str], parts: list[str], say: list[str]) -> None:
    say += [
        f"\n## Published networks: the first {images} images classified correctly\n",
        "| network | eps | attack | broken | CPU s |",
        "|---|---|---|---|---|",
    ]
    asked = [name for name in PUBLISHED if not wanted or name in wanted]
    names, _ = known(tuple(asked), rp.Linf(eps=0.1, clip=(0, 1)))
    for name in ("mlp-5x100", "mnist-conv-small", "cifar-conv-small"):
        if parts and not any(part in name for part in parts):
            continue
        subject = load(name, folder, 2 * images)
        with torch.no_grad():
            right = (subject.model(subject.x).argmax(1) == subject.y).nonzero().flatten()[:images]
        x, y = subject.x[right], subject.y[right]
        for attack_name, attack in names.items():
            start = time.process_time()
            result = attack(subject.model, x, y, subject.ball, seed=0)
            seconds, broken = time.process_time() - start, int(result.success.sum())
            say.append(f"| {name} | {subject.ball.largest:.4g} | `{attack_name}` | {broken} | {seconds:.1f} |")
            print(say[-1], file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("radii", "published", "contradictions")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--norm", nargs="+", choices=tuple(BALLS), default=tuple(BALLS))
    parser.add_argument("--samples", type=int, default=20, help="images of each network")
    parser.add_argument(
        "--attacks", nargs="+", default=[], choices=sorted({*BISECTED, *ONCE, *PUBLISHED}), help="these, instead of all"
    )
    parser.add_argument("--network", nargs="+", default=[], help="parts of names; small and published networks alike")
    parser.add_argument("--models", type=Path, default=Path("../shared/models/eran"), help="the published networks")
    parser.add_argument("--write", type=Path, help="a file for the tables, instead of standard output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    day = datetime.now(tz=UTC).date()
    command = " ".join(("python -m integration.comparisons.attack_optimality", *sys.argv[1:]))
    say = [f"# Attacks against exact radii, {day}\n", f"`{command}`, one thread, torch {torch.__version__}."]
    if "radii" in arguments.part:
        for norm in arguments.norm:
            measure(norm, arguments.samples, arguments.attacks, arguments.network, say)
    if "published" in arguments.part:
        published(arguments.models, arguments.samples, arguments.attacks, arguments.network, say)
    if "contradictions" in arguments.part:
        contradictions(say)
    text = "\n".join(say) + "\n"
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
