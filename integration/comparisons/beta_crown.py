"""Branch and bound on the bounds of auto_LiRPA's beta-CROWN beside `interval:branch-and-bound`.

    python integration/comparisons/beta_crown.py --models DIR [--network cifar] [--images 5] [--timeout 60] [--json]

auto_LiRPA brings bounds of domains, with its own optimisation of alpha and beta, and no search: the one here is what
their authors describe. Of three neurons whose upper lines cost a domain's bound most, it is split at the one with the
best bound of its worse half; up to 64 domains are bounded at once, in 20 steps, with the bounds of layers that the
whole ball has. It needs auto_LiRPA 0.7 or newer, from its repository. CPU seconds of one thread; networks, images and
`--models` are those of `optimised_slopes.py`.

Wang et al. 2021, "Beta-CROWN: efficient bound propagation with per-neuron split constraints".
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from optimised_slopes import NETWORKS, Normalised, load, tiny

import robust_plugins as rp

BATCH, STEPS, SHORTLIST = 64, 20, 3
Signs = dict[str, dict[int, float]]
"""Of the neurons that were split, by the node of their inputs."""


@dataclass(frozen=True)
class Domain:
    """A part of the ball, with the lower bound of the margin over it."""

    bound: float
    signs: Signs
    units: list[tuple[str, int]]
    """Those that it may be split at, the best first."""


class Bounds:
    """Bounds of margins over parts of one box, by auto_LiRPA; `chosen` is the margin that is asked about."""

    def __init__(self, net: nn.Module, lower: Tensor, upper: Tensor, rows: Tensor) -> None:
        from auto_LiRPA import BoundedModule

        options = {"iteration": STEPS, "enable_beta_crown": False, "lr_alpha": 0.1}
        self.lower, self.upper, self.rows, self.chosen = lower, upper, rows, 0
        self.module = BoundedModule(net, lower, bound_opts={"optimize_bound_args": options, "conv_mode": "matrix"})
        self.module.eval()
        x = self._input(1)
        self.module.init_alpha((x,), c=rows.unsqueeze(0), bound_upper=False)
        found, _ = self.module.compute_bounds((x,), C=rows.unsqueeze(0), method="CROWN-Optimized", bound_upper=False)
        self.whole = found.detach().flatten()
        self.module.get_split_nodes()
        self.nodes = [node.name for node in self.module.split_nodes]
        self.ends = {name: (self.module[name].lower.detach(), self.module[name].upper.detach()) for name in self.nodes}
        self.activations = list(self.module.optimizable_activations)
        self.after = {name: self.module.split_activations[name][0][0].name for name in self.nodes}
        self.alphas = [{k: a.detach().clone() for k, a in node.alpha.items()} for node in self.activations]
        options |= {"enable_beta_crown": True, "init_alpha": False, "fix_interm_bounds": True, "lr_alpha": 0.01}
        self.module.set_bound_opts({"optimize_bound_args": options | {"lr_beta": 0.05}})

    def __call__(self, parts: list[Signs], *, optimised: bool) -> tuple[Tensor, list[list[tuple[str, int]]]]:
        """Bounds of parts, and the units of each whose upper lines cost most."""
        count, module = len(parts), self.module
        ends = {name: [end.repeat(count, *[1] * (end.dim() - 1)) for end in pair] for name, pair in self.ends.items()}
        for name in self.nodes:
            most = max(1, *(len(signs.get(name, {})) for signs in parts))
            module.reset_beta(module[name], (count, most), [None] * count)
            history = [{name: (list(s.get(name, {})), list(s.get(name, {}).values()))} for s in parts]
            module[name].sparse_betas[0].apply_splits(history, name)
            for i, signs in enumerate(parts):
                for unit, sign in signs.get(name, {}).items():
                    end = ends[name][0 if sign > 0 else 1][i].view(-1)
                    end[unit] = end[unit].clamp(min=0) if sign > 0 else end[unit].clamp(max=0)
        for node, alphas in zip(self.activations, self.alphas, strict=True):
            for key, alpha in alphas.items():
                own = alpha[:, self.chosen : self.chosen + 1] if alpha.shape[1] == len(self.rows) else alpha
                node.alpha[key] = own.repeat([1, 1, count, *[1] * (alpha.dim() - 3)]).requires_grad_()
        found, _, lines = module.compute_bounds(
            (self._input(count),), C=self.rows[self.chosen].expand(count, 1, -1), bound_upper=False,
            method="CROWN-Optimized" if optimised else "CROWN", interm_bounds={n: tuple(e) for n, e in ends.items()},
            return_A=True, needed_A_dict={module.final_name: list(self.after.values())}, reuse_alpha=not optimised,
        )  # fmt: skip
        costs = []
        for name in self.nodes:
            low, up = (end.flatten(1) for end in ends[name])
            intercept = torch.where((low < 0) & (up > 0), -low * up / (up - low).clamp(min=1e-12), 0.0)
            a = lines[module.final_name][self.after[name]]["lA"].detach().reshape(count, -1)
            costs.append((-a).clamp(min=0) * intercept + 1e-9 * intercept)
        best = torch.cat(costs, 1).topk(SHORTLIST, 1)
        places = [(name, unit) for name, cost in zip(self.nodes, costs, strict=True) for unit in range(cost.shape[1])]
        units = [
            [places[j] for j, value in zip(row, values, strict=True) if value > 0]
            for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        return found.detach().flatten(), units

    def _input(self, count: int) -> Any:
        from auto_LiRPA import BoundedTensor
        from auto_LiRPA.perturbations import PerturbationLpNorm

        low, up = (end.repeat(count, *[1] * (end.dim() - 1)) for end in (self.lower, self.upper))
        return BoundedTensor((low + up) / 2, PerturbationLpNorm(x_L=low, x_U=up))


def split(signs: Signs, unit: tuple[str, int], sign: float) -> Signs:
    name, place = unit
    return signs | {name: signs.get(name, {}) | {place: sign}}


def verified(bounds: Bounds, left: Callable[[], float]) -> tuple[bool, int]:
    """Whether the chosen margin is above zero in the whole box, and how many domains were bounded."""
    if bounds.whole[bounds.chosen] > 0:
        return True, 1
    value, units = bounds([{}], optimised=True)
    open_domains, count = [Domain(float(value[0]), {}, units[0])], 1
    while open_domains and left() > 0:
        open_domains.sort(key=lambda domain: domain.bound)
        taken, open_domains = open_domains[: BATCH // 2], open_domains[BATCH // 2 :]
        if any(not domain.units for domain in taken):
            return False, count  # nothing is left to split: it would take a linear programme
        tried = [(domain, unit) for domain in taken for unit in domain.units]
        halves = [split(domain.signs, unit, sign) for domain, unit in tried for sign in (1.0, -1.0)]
        worse = torch.cat([bounds(halves[i : i + BATCH], optimised=False)[0] for i in range(0, len(halves), BATCH)])
        best = {id(domain): (-torch.inf, domain.units[0]) for domain in taken}
        for (domain, unit), value in zip(tried, worse.view(-1, 2).amin(1).tolist(), strict=True):
            best[id(domain)] = max(best[id(domain)], (value, unit))
        parts = [split(domain.signs, best[id(domain)][1], sign) for domain in taken for sign in (1.0, -1.0)]
        values, units = bounds(parts, optimised=True)
        count += len(parts)
        for signs, value, choice in zip(parts, values.tolist(), units, strict=True):
            if value <= 0:
                open_domains.append(Domain(value, signs, choice))
    return not open_domains, count


def theirs(model: nn.Module, x: Tensor, y: int, ball: rp.Ball, timeout: float) -> tuple[str, int]:
    """The verdict on one image, without an attack, and the number of domains."""
    box, net, start = ball.box(x), model, time.process_time()
    lower, upper = box.lower, box.upper
    if isinstance(model, Normalised):  # its constants have no patches there
        net, lower, upper = model.net, *((end - model.mean) / model.std for end in (lower, upper))
    rows = torch.eye(10)[y] - torch.eye(10)[[j for j in range(10) if j != y]]
    bounds, total = Bounds(net, lower, upper, rows), 0
    for bounds.chosen in range(len(rows)):
        found, count = verified(bounds, lambda: timeout - (time.process_time() - start))
        total += count
        if not found:
            return "open", total
    return "certified", total


def measure(name: str, folder: Path, images: int, timeout: float) -> list[dict[str, object]]:
    """A row for each image; those that ours falsifies are left out."""
    model, x, y, ball = load(name, folder, images)
    model.requires_grad_(False)
    component = rp.certifier("interval:branch-and-bound", timeout=timeout, clock="cpu")
    component(model, x[:1], y[:1], tiny(ball))  # what is loaded once is not timed
    rows: list[dict[str, object]] = []
    for i in range(len(x)):
        start = time.process_time()
        ours = component(model, x[i : i + 1], y[i : i + 1], ball).verdicts[0]
        between = time.process_time()
        if ours is rp.Verdict.FALSIFIED:
            continue
        answer, domains = theirs(model, x[i : i + 1], int(y[i]), ball, timeout)
        rows.append({
            "network": name, "image": i, "branch-and-bound": str(ours), "CPU s": round(between - start, 2),
            "beta-CROWN": answer, "domains": domains, "its CPU s": round(time.process_time() - between, 2),
        })  # fmt: skip
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def newest() -> bool:
    """Whether auto_LiRPA has the interface that is used here."""
    try:
        from auto_LiRPA.beta_crown import SparseBeta
    except ImportError:
        return False
    return hasattr(SparseBeta, "apply_splits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--network", action="append", choices=list(NETWORKS))
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not newest():
        sys.exit(
            "auto_LiRPA 0.7 or newer is needed: install it from https://github.com/Verified-Intelligence/auto_LiRPA"
        )
    torch.set_num_threads(1)
    rows = [row for name in arguments.network or NETWORKS for row in measure(
        name, arguments.models, arguments.images, arguments.timeout)]  # fmt: skip
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
