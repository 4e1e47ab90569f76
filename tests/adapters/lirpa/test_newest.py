"""What auto_LiRPA's releases since 0.4 bound wrongly: shown on the backend alone, and what becomes of it here."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.bounds_checker import sound, violation
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN, Jacobian, compat
from robust_plugins.adapters.lirpa.bounded import Recipe, bounded

pytestmark = pytest.mark.skipif(compat.load().legacy, reason="about the releases since 0.4")
CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=2)]
LINEAR = CERTIFIERS[1:]
BALL = rp.Linf(eps=0.03, clip=None)
X = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
IMAGES = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))


class Middle(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor], width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(width, 3), function
        with torch.no_grad():
            self.first.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


def pooled(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(),
        nn.Linear(27, 8), nn.ReLU(), nn.Linear(8, 3),
    ).eval()  # fmt: skip


def directly(model: nn.Module, x: Tensor, ball: rp.Ball, method: str) -> rp.Interval:
    """auto_LiRPA's own bounds, without the adapter."""
    backend = compat.load()
    with backend.tracing([]):
        module = backend.module_class(model, x, bound_opts={"conv_mode": "matrix"})
        box = ball.box(x)
        around = backend.perturbation_class(norm=torch.inf, x_L=box.lower, x_U=box.upper)
        with torch.no_grad():
            low, up = module.compute_bounds(x=(backend.tensor_class(x, around),), method=method)
    return rp.Interval(low, up)


FAULTS: dict[str, tuple[Callable[[int], nn.Module], Tensor, str, list[rp.Certifier], str]] = {
    "repeat": (
        lambda s: Middle(lambda h: h.relu().repeat(1, 2), 12, s),
        X,
        "CROWN",
        LINEAR,
        "unsound there .*a repeat",
    ),
    "square": (lambda s: Middle(lambda h: h**2, seed=s), X, "CROWN", LINEAR, "unsound there .*a power"),
    "fourth power": (lambda s: Middle(lambda h: h**4, seed=s), X, "CROWN", LINEAR, "unsound there .*a power"),
    "padding that does not count": (pooled, IMAGES, "IBP", CERTIFIERS, "computes something else|AvgPool2d"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_backend_bounds_wrongly_is_refused(name: str) -> None:
    make, x, method, refusing, named = FAULTS[name]
    worst = max(violation(make(seed), x, BALL, directly(make(seed), x, BALL, method)) for seed in range(6))
    assert worst > 1e-4  # the backend's fault
    model = make(0)
    for certifier in CERTIFIERS:
        if certifier in refusing:
            with pytest.raises(rp.UnsupportedModelError, match=named):
                certifier.bounds(model, x, BALL)
        else:
            assert sound(model, x, BALL, certifier.bounds(model, x, BALL), samples=20)


ALLOWED: dict[str, nn.Module] = {
    "cube": Middle(lambda h: h**3),
    "product with itself": Middle(lambda h: h * h),
    "one after another": Middle(lambda h: h.relu().repeat_interleave(2, 1), 12),
    "leaky": Middle(lambda h: F.leaky_relu(h, 0.2)),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_their_harmless_relatives_are_bounded(name: str) -> None:
    for certifier in CERTIFIERS:
        for eps in (1e-4, 0.03, 0.3):
            ball = rp.Linf(eps=eps, clip=None)
            assert sound(ALLOWED[name], X, ball, certifier.bounds(ALLOWED[name], X, ball), samples=20)


def test_forward_bounds_which_are_wrong_for_leaky_activations_are_never_asked_for() -> None:
    model = ALLOWED["leaky"]
    assert violation(model, X, BALL, directly(model, X, BALL, "Forward")) > 1e-3  # the backend's fault
    assert {c.method for c in CERTIFIERS} == {"IBP", "CROWN-IBP", "CROWN", "alpha-CROWN"}  # type: ignore[attr-defined]


def test_max_pooling_is_refused_with_optimised_slopes() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)).eval()
    with pytest.raises(rp.UnsupportedModelError, match="MaxPool2d"):
        AlphaCROWN(steps=2).bounds(model, IMAGES, BALL)
    assert sound(model, IMAGES, BALL, CROWN().bounds(model, IMAGES, BALL), samples=20)


class Normalised(nn.Module):
    """A network behind (x - mean) / std."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.rand(shape))
        self.std = nn.Parameter(torch.linspace(-0.7, 0.9, self.mean.numel()).view(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def test_a_normalisation_is_folded_into_the_input() -> None:
    model = Normalised(convolutional(), (2, 1, 1)).eval()
    for certifier in CERTIFIERS:
        for eps in (1e-4, 0.03):
            ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
            assert sound(model, IMAGES, ball, certifier.bounds(model, IMAGES, ball), samples=20)
    assert len(bounded(model, IMAGES, Recipe()).folded.steps) == 2
    with torch.no_grad():
        model.std.mul_(0.5)
    assert sound(model, IMAGES, BALL, CROWN().bounds(model, IMAGES, BALL), samples=20)


def reached(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> tuple[Tensor, Tensor]:
    """The smallest and the largest gradient components found at corners, and by ascent on single ones through tanh."""
    draw = torch.Generator().manual_seed(0)
    z = torch.cat([ball.sample(x, 60, draw, draw=kind) for kind in ("uniform", "corner")])
    size = x[0].numel()

    def gradient(z: Tensor, *, graph: bool = False) -> Tensor:
        logits = model(z).gather(1, y.repeat(len(z) // len(x)).unsqueeze(1)).sum()
        return torch.autograd.grad(logits, z, create_graph=graph)[0]

    found = [gradient(z.flatten(0, 1).requires_grad_()).view(-1, *x.shape)]
    z = x.repeat(2 * size, *[1] * (x.dim() - 1))
    goal = torch.cat((torch.eye(size), -torch.eye(size))).repeat_interleave(len(x), 0).view_as(z)
    for _ in range(4):
        z = z.detach().requires_grad_()
        value = (goal * gradient(z, graph=True)).sum()
        if not value.requires_grad:
            break
        (up,) = torch.autograd.grad(value, z, allow_unused=True)
        if up is None:
            break
        centers = x.repeat(2 * size, *[1] * (x.dim() - 1))
        z = ball.project(z + ball.steepest(up), centers)
        found.append(gradient(z.detach().requires_grad_()).view(-1, *x.shape))
    every = torch.cat(found)
    return every.amin(0), every.amax(0)


def network(activation: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 6), activation, nn.Linear(6, 3)).eval()


JACOBIANS: dict[str, tuple[nn.Module, Tensor]] = {
    "ReLU": (network(nn.ReLU()), X),
    "Tanh": (network(nn.Tanh()), X),
    "Sigmoid, normalised": (Normalised(network(nn.Sigmoid()), (5,)).eval(), X),
    "convolution": (convolutional().eval(), IMAGES),
    "convolution, normalised": (Normalised(convolutional(), (2, 1, 1)).eval(), IMAGES),
    "convolution, normalised with a batch axis": (Normalised(convolutional(), (1, 2, 1, 1)).eval(), IMAGES),
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_no_gradient_leaves_the_bounds(name: str) -> None:
    model, x = JACOBIANS[name]
    y = torch.tensor([0, 1, 2])
    for eps in (1e-4, 0.03, 0.2):
        ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
        found = Jacobian().bounds(model, x, y, ball, of="logit").detach()
        low, up = reached(model, x, y, ball)
        slack = 2e-6 * (1 + float(up.abs().max()))
        assert (found.lower - slack <= low).all()
        assert (up <= found.upper + slack).all()
        tight = found.width.mean() / (up - low).mean().clamp(min=1e-9)
        assert "Tanh" not in name or tight < 20
    point = Jacobian().bounds(model, x, y, rp.Linf(eps=0.0, clip=None), of="logit").detach()
    assert float(point.width.max()) < 1e-4


def test_jacobians_of_batches_are_wrong_in_the_backend() -> None:
    """So the adapter takes one sample a call."""
    backend = compat.load()
    operator = importlib.import_module("auto_LiRPA.jacobian").JacobianOP
    model = network(nn.ReLU())

    class Gradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return operator.apply(self.model(x)[:, :1], x)

    ball = rp.Linf(eps=0.2, clip=(0.0, 1.0))
    box = ball.box(X)
    with backend.tracing([]):
        module = backend.module_class(Gradient(), X)
        around = backend.perturbation_class(norm=torch.inf, x_L=box.lower, x_U=box.upper)
        low, up = module.compute_jacobian_bounds((backend.tensor_class(X, around),), optimize=False)
    low, up = low.detach(), up.detach()
    smallest, largest = reached(model, X, torch.zeros(3, dtype=torch.long), ball)
    outside = torch.maximum(low.view_as(X) - smallest, largest - up.view_as(X))
    assert float(outside.max()) > 1e-3  # the backend's fault
