"""What every bound is tested against: the network itself, at sampled points, at corners, and by ascent.

`bounds_of` collects all that the engine proves about a case, `violations` searches for what contradicts it. The
mutation tests run the same search on rules that were broken on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from robust_plugins.intervals import Interval, crown, trace
from robust_plugins.intervals.methods.relaxation import Relaxation

TOLERANCE = 1e-9


@dataclass
class Case:
    """A model, with boxes of its inputs, of the gradient sent in, and of some of its weights."""

    model: nn.Module
    x: Interval
    grad: Interval
    weights: dict[str, Interval] = field(default_factory=dict)

    @property
    def boxes(self) -> dict[str, Interval]:
        return {"x": self.x, "grad": self.grad, **self.weights}


def make_case(
    model: nn.Module, shape: tuple[int, ...], *, eps: float, gamma: float, seed: int, batch: int = 2, grad: float = 0.1
) -> Case:
    """A case in float64 with boxes of random widths up to `eps` for inputs and `gamma` for weights."""
    g = torch.Generator().manual_seed(seed)

    def box(center: Tensor, width: float) -> Interval:
        if width == 0:
            return Interval.point(center)
        below, above = torch.rand((2, *center.shape), generator=g, dtype=torch.float64) * width
        return Interval(center - below, center + above)

    model = model.double().eval()
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                fresh = torch.randn(value.shape, generator=g, dtype=torch.float64) * 0.7
                value.copy_(fresh)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_var is not None:
                module.running_var.abs_().add_(0.3)
        x = torch.randn((batch, *shape), generator=g, dtype=torch.float64)
        out = model(x)
        weights = {n: box(p.detach(), gamma) for n, p in model.named_parameters()} if gamma else {}
        return Case(model, box(x, eps), box(torch.randn(out.shape, generator=g, dtype=torch.float64), grad), weights)


def bounds_of(case: Case, *, relax: bool = False, gradients: bool = True) -> dict[str, Interval]:
    """Everything the engine proves about a case, by name."""
    with torch.no_grad():
        network = trace(case.model, case.x.lower, weights=case.weights)
        values = crown(network, case.x) if relax else network.forward(case.x)
        found = {"output": values[-1]}
        if relax:
            found["output"] = Relaxation(network, values).bounds(len(values) - 1)
        if gradients:
            for mode in ("sample", "sum"):
                back = network.backward(values, case.grad, weights=mode)
                found["input"] = back.input
                found |= {f"{mode} {name}": value for name, value in back.parameters.items()}
        return found


def truth(case: Case, point: Mapping[str, Tensor], *, gradients: bool = True) -> dict[str, Tensor]:
    """The same quantities at one point of the boxes, by the network and automatic differentiation."""
    x = point["x"] if point["x"].requires_grad else point["x"].detach().requires_grad_()
    parameters = {n: p.detach().requires_grad_() for n, p in case.model.named_parameters()}
    parameters |= {n: point[n] if point[n].requires_grad else point[n].detach().requires_grad_() for n in case.weights}
    out = functional_call(case.model, parameters, (x,))
    found = {"output": out}
    if not gradients:
        return found
    names = list(parameters)
    grads = _grad((out * point["grad"]).sum(), [x, *parameters.values()])
    found["input"] = grads[0]
    found |= {f"sum {n}": g for n, g in zip(names, grads[1:], strict=True)}
    if names:
        per_sample = [
            _grad((functional_call(case.model, parameters, (x[i : i + 1],)) * point["grad"][i : i + 1]).sum(),
                  list(parameters.values()))
            for i in range(len(x))
        ]  # fmt: skip
        found |= {f"sample {n}": torch.stack([g[k] for g in per_sample]) for k, n in enumerate(names)}
    return found


def observed(
    case: Case, *, seed: int = 0, samples: int = 12, ascents: int = 12, gradients: bool = True
) -> dict[str, Interval]:
    """The hull of all that a search over the boxes sees, by name: random points, corners, ascent on single entries."""
    g = torch.Generator().manual_seed(seed)
    hull: dict[str, Interval] = {}

    def look(point: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = truth(case, point, gradients=gradients)
        for name, value in values.items():
            seen = Interval.point(value.detach())
            hull[name] = hull[name].hull(seen) if name in hull else seen
        return values

    for index in range(samples):
        look({k: _draw(b, g, corner=index % 2 == 0) for k, b in case.boxes.items()})
    names = [n for n in hull if hull[n].lower.numel()]
    for index in range(ascents):
        name = names[index % len(names)]
        entry = int(torch.randint(hull[name].lower.numel(), (), generator=g))
        sign = 1.0 if torch.rand((), generator=g) < 0.5 else -1.0
        point = {k: _draw(b, g, corner=True).requires_grad_() for k, b in case.boxes.items()}
        for _ in range(2):  # each step moves every variable to the end that its derivative points to
            try:
                slopes = _grad(sign * look(point)[name].flatten()[entry], list(point.values()))
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                break  # torch has no second derivative of hardsigmoid
            for (k, box), d in zip(case.boxes.items(), slopes, strict=True):
                end = torch.where(d > 0, box.upper, torch.where(d < 0, box.lower, point[k].detach()))
                point[k] = end.requires_grad_()
        look(point)
    return hull


def violations(bounds: Mapping[str, Interval], hull: Mapping[str, Interval]) -> list[str]:
    """The names of those bounds that do not hold what was observed; empty where all do."""
    found = []
    for name, interval in bounds.items():
        seen = hull[name]
        tolerance = TOLERANCE * (1 + float(seen.magnitude.max()))
        inside = interval.contains(seen.lower, tolerance=tolerance) & interval.contains(seen.upper, tolerance=tolerance)
        if seen.shape != interval.shape or not bool(inside.all()):
            found.append(name)
    return found


def _draw(box: Interval, g: torch.Generator, *, corner: bool) -> Tensor:
    t = torch.rand(box.shape, generator=g, dtype=torch.float64)
    if corner:
        t = t.round()
    return torch.where(t == 1, box.upper, box.lower + t * box.width)


def _grad(value: Tensor, sources: list[Tensor]) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(s) for s in sources]
    found = torch.autograd.grad(value, sources, create_graph=True, allow_unused=True)
    return [torch.zeros_like(s) if f is None else f for s, f in zip(sources, found, strict=True)]


Mutation = Callable[[Interval, Interval | None], Interval]


def _same(result: Interval, grad: Interval | None) -> Interval:
    return grad if grad is not None and grad.shape == result.shape else Interval.point(torch.zeros_like(result.lower))


MUTATIONS: dict[str, Mutation] = {
    "wrong sign": lambda result, grad: -result,
    "swapped bounds": lambda result, grad: Interval(result.upper, result.lower),
    "lower end twice": lambda result, grad: Interval(result.lower, result.lower.clone()),
    "upper end twice": lambda result, grad: Interval(result.upper, result.upper.clone()),
    "half the radius": lambda result, grad: Interval(
        result.center - result.radius / 2, result.center + result.radius / 2
    ),
    "forgotten gate": _same,
}
