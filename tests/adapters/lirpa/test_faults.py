"""What auto_LiRPA's operators get wrong, shown on the backend alone, and what becomes of it in the adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from support.bounds_checker import sound, violation
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN, audit, certifiers, compat, unsound
from robust_plugins.adapters.lirpa.bounded import Recipe, bounded
from robust_plugins.adapters.lirpa.graph import is_chain, perturbed_nodes

CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=2)]
LINEAR = CERTIFIERS[1:]
X = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
BALL = rp.Linf(eps=0.3, clip=(0.0, 1.0))
pytestmark = [
    pytest.mark.full_audits,
    pytest.mark.skipif(not compat.load().legacy, reason="about the releases before 0.4"),
]


QUOTIENTS: dict[str, Callable[[Middle, Tensor], Tensor]] = {
    "h / (1 + exp h)": lambda _, h: h / (1 + h.exp()),
    "-1 / (1 + exp h)": lambda _, h: -1 / (1 + h.exp()),
    "h / -(1 + h * h)": lambda _, h: h / -(1 + h * h),
}


class Middle(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Middle, Tensor], Tensor], width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(width, 3), function
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        with torch.no_grad():
            self.first.weight *= 3

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, self.first(x)))


def directly(model: nn.Module, method: str) -> rp.Interval:
    """auto_LiRPA's own bounds, without the adapter."""
    backend = compat.load()
    with backend.tracing([]):
        module = backend.module_class(model, X)
    box = BALL.box(X)
    around = backend.perturbation_class(norm=torch.inf, x_L=box.lower, x_U=box.upper)
    with torch.no_grad():
        low, up = module.compute_bounds(x=(backend.tensor_class(X, around),), method=method)
    return rp.Interval(low, up)  # they may cross


FAULTS: dict[str, tuple[nn.Module, str, list[rp.Certifier]]] = {
    "slope above 1": (Middle(lambda _, h: F.leaky_relu(h, 2.0)), "CROWN", LINEAR),
    "negative slope": (Middle(lambda _, h: F.leaky_relu(h, -0.5)), "IBP", CERTIFIERS),
    "repeated index": (Middle(lambda _, h: h.relu()[:, [0, 3, 3]], 3), "CROWN", LINEAR),
    "matrix product with factors": (
        Middle(lambda m, h: torch.addmm(m.bias, h.relu(), m.weight, beta=2, alpha=-3)), "IBP", CERTIFIERS,
    ),
    "negative or variable exponent": (Middle(lambda _, h: (h.relu() + 1) ** -1), "IBP", CERTIFIERS),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_the_backend_bounds_wrongly_is_refused(name: str) -> None:
    model, method, refusing = FAULTS[name]
    worst = 0.0
    for seed in range(10):  # a fault need not show at every model
        trial = Middle(model.function, model.last.in_features, seed)  # type: ignore[arg-type]
        worst = max(worst, violation(trial, X, BALL, directly(trial, method)))
    assert worst > 1e-3  # the backend's fault
    y = model(X).argmax(1)
    for certifier in CERTIFIERS:
        if certifier in refusing:
            certificate = certifier(model, X, y, BALL)
            assert set(certificate.verdicts) <= {rp.Verdict.UNSUPPORTED}
            assert "unsound" in certificate.messages[0]
        else:
            assert sound(model, X, BALL, certifier.bounds(model, X, BALL))


ALLOWED: dict[str, Callable[[Middle, Tensor], Tensor]] = {
    "LeakyReLU": lambda _, h: F.leaky_relu(h, 0.2),
    "index": lambda _, h: h.relu()[:, [0, 2, 3, 4, 5, 1]],
    "addmm": lambda m, h: torch.addmm(m.bias, h.relu(), m.weight),
    "cube": lambda _, h: h**3,
    "softmax": lambda _, h: F.softmax(3 * h, 1),
    "products of weights": lambda m, h: F.linear(h.relu(), m.weight * m.weight.sigmoid(), m.bias),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_their_harmless_relatives_are_bounded(name: str) -> None:
    model = Middle(ALLOWED[name])
    assert sound(model, X, BALL, IBP().bounds(model, X, BALL))


@pytest.mark.parametrize("inner", [False, True], ids=["softmax last", "softmax inside"])
def test_intervals_go_through_a_softmax(inner: bool) -> None:
    """Its parts stand out of order in the graph: taken for weights, they bounded a single point."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Softmax(1)]
    model = nn.Sequential(*layers, *[nn.Linear(3, 3)] * inner)
    bounds = IBP().bounds(model, X, BALL).detach()
    assert float(bounds.width.min()) > 0.01
    assert sound(model, X, BALL, bounds)
    nodes = list(bounded(model, X, Recipe(fold=True)).module.children())
    order = {node.name: place for place, node in enumerate(nodes)}
    assert any(order[i.name] > order[n.name] for n in nodes for i in n.inputs)  # as said
    assert all(n.name in perturbed_nodes(bounded(model, X, Recipe()).module) for n in nodes if "Div" in str(type(n)))


def test_a_softmax_is_not_certified_against_an_attack() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Softmax(1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x, y, ball = torch.tensor([[0.6, 0.4]]), torch.tensor([0]), rp.Linf(eps=0.3, clip=(0.0, 1.0))
    assert not rp.certifier("lirpa:ibp")(model, x, y, ball).certified.any()


@pytest.mark.parametrize("name", QUOTIENTS)
def test_intervals_of_quotients_are_repaired(name: str) -> None:
    worst = 0.0
    for seed in range(4):
        model = Middle(QUOTIENTS[name], seed=seed)
        for eps in (1e-4, 0.1, 0.5):
            ball = replace(BALL, eps=eps)
            assert sound(model, X, ball, IBP().bounds(model, X, ball), samples=20)
        worst = max(worst, violation(model, X, BALL, directly(model, "IBP")) if name == "h / (1 + exp h)" else 1.0)
    assert worst > 1e-3  # the backend's fault, where it does not refuse
    wide = [IBP().bounds(model, X, replace(BALL, eps=e)).width for e in (0.0, 0.1, 0.3)]
    assert all((a <= b + 1e-6).all() for a, b in pairwise(wide))


@dataclass(frozen=True, kw_only=True)
class Shrunk(IBP):
    """A backend that is a tenth of the width too sure, or more."""

    by: float = 0.1

    def _bounds(self, *args: object) -> rp.Interval:
        found = super()._bounds(*args)  # type: ignore[arg-type]
        return rp.Interval(found.lower + self.by * found.width, found.upper - self.by * found.width)


def test_an_unknown_fault_is_found_by_the_audit_once_per_method(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    with pytest.raises(
        rp.UnsupportedModelError, match=r"bounds Sequential wrongly with IBP: at eps=0\.003 a point lies"
    ):
        Shrunk().bounds(model, X, BALL)
    calls: list[int] = []
    real = IBP._bounds

    def counted(self: IBP, *args: object) -> rp.Interval:
        calls.append(1)
        return real(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(IBP, "_bounds", counted)
    model = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    counts = []
    for _ in range(5):
        IBP().bounds(model, X, BALL)
        counts.append(len(calls))
    assert counts[0] > 10  # the audit's
    assert [b - a for a, b in pairwise(counts)] == [1, 1, 1, 1]
    with torch.no_grad():
        model[0].weight.mul_(2)
    for _ in range(4):  # the eighth call audits the new weights
        IBP().bounds(model, X, BALL)
        counts.append(len(calls))
    assert [b - a for a, b in pairwise(counts[4:])] == [1, 1, counts[7] - counts[6], 1]
    assert counts[7] - counts[6] > 5


CHAINS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "one layer": (lambda: nn.Linear(5, 3), X),
    "dense": (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), X),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(8, 3),
        ),
        X.repeat(1, 5).view(3, 1, 5, 5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_a_short_audit_of_chains_finds_what_is_unknown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    make, x = CHAINS[name]
    model, calls = make().eval(), []
    assert is_chain(bounded(model, x, Recipe()).module)
    with pytest.raises(rp.UnsupportedModelError, match="wrongly with IBP"):
        Shrunk(by=0.1 if name == "one layer" else 0.4).bounds(model, x, BALL)
    monkeypatch.setattr(audit._Audit, "_hold", lambda *arguments: calls.append(len(arguments[2])))
    IBP().bounds(make().eval(), x, BALL)
    assert sum(calls) == 2 * 2 + 1 + 2  # two radii for two samples, one of them alone, and drawn weights


def test_what_is_no_chain_has_a_long_one() -> None:
    for model, x in (
        (Twice(TWICE["both signs"], 0), X),
        (Middle(lambda _, h: h.tanh()), X),
        (grouped(0), torch.rand(1, 2, 5, 5)),
    ):
        assert not is_chain(bounded(model.eval(), x, Recipe()).module)


@pytest.mark.parametrize("name", FAULTS)
def test_the_audit_finds_the_known_faults_as_well(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifiers, "refuse_unsound", lambda *_, **__: None)
    model, method, _ = FAULTS[name]
    certifier = next(c for c in CERTIFIERS if c.method == method)  # type: ignore[attr-defined]
    found = 0
    for seed in range(10):
        trial = Middle(model.function, model.last.in_features, seed)  # type: ignore[arg-type]
        try:
            certifier.bounds(trial, X, replace(BALL, eps=0.01))
        except rp.UnsupportedModelError as error:
            found += "wrongly with" in str(error)
        except rp.ComponentError:  # crossing bounds, which the interface sees
            found += 1
    assert found >= 5


def grouped(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.ReLU(),
        nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2),
    ).eval()  # fmt: skip


class Twice(nn.Module):
    """A value read by a ReLU and by something else, in the middle of a network."""

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6))
        self.last, self.function = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


TWICE: dict[str, Callable[[Tensor], Tensor]] = {
    "both signs": lambda h: h.relu() + (-h).relu(),
    "product with its negative": lambda h: h * (-h),
    "addcmul": lambda h: torch.addcmul(h, h.relu(), h.tanh()),
}


@pytest.mark.parametrize("certifier", [CROWN(), AlphaCROWN(steps=2)], ids=["CROWN", "alpha-CROWN"])
def test_grouped_convolutions_are_bounded_as_matrices(certifier: rp.Certifier) -> None:
    images = torch.rand(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    for seed in range(2):
        model = grouped(seed)
        for eps in (0.003, 0.01):
            ball = rp.Linf(eps=eps, clip=(0.0, 1.0))
            assert sound(model, images, ball, certifier.bounds(model, images, ball), samples=20)


def test_the_audit_finds_grouped_convolutions_in_patches_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsound, "_grouped", lambda _: False)
    images = torch.rand(8, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    for seed in range(4):
        model, recipe = grouped(seed), Recipe(CROWN.options, convolve=True)
        with pytest.raises(rp.UnsupportedModelError, match="wrongly with CROWN"):
            CROWN()._supported(model, images, replace(BALL, eps=0.01), None, recipe)


@pytest.mark.parametrize("name", TWICE)
def test_values_that_are_read_twice_are_bounded(name: str) -> None:
    for seed in range(3):
        model = Twice(TWICE[name], seed).eval()
        for eps in (0.01, 0.1):
            ball = replace(BALL, eps=eps)
            assert sound(model, X, ball, CROWN().bounds(model, X, ball), samples=20)


@pytest.mark.parametrize("name", TWICE)
def test_the_audit_finds_bounds_of_the_first_reader_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CROWN, "options", ())  # sparse, the backend's default
    for seed in range(4):
        with pytest.raises(rp.UnsupportedModelError, match="wrongly with CROWN"):
            CROWN().bounds(Twice(TWICE[name], seed).eval(), X, replace(BALL, eps=0.01))


def test_the_bounds_of_a_sample_do_not_depend_on_the_batch() -> None:
    model = Twice(TWICE["both signs"], 0).eval()
    together = CROWN().bounds(model, X, BALL).detach()
    for i in range(len(X)):
        alone = CROWN().bounds(model, X[i : i + 1], BALL).detach()
        assert torch.allclose(alone.lower, together.lower[i : i + 1], atol=1e-6)
        assert torch.allclose(alone.upper, together.upper[i : i + 1], atol=1e-6)


def test_a_fault_that_the_present_weights_hide_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every ReLU is shut, nothing shows; after a step of training it would."""
    monkeypatch.setattr(CROWN, "options", ())
    model = Twice(TWICE["both signs"], 0).eval()
    with torch.no_grad():
        model.last[0].bias.fill_(-100)
    with pytest.raises(rp.UnsupportedModelError, match="wrongly with CROWN"):
        CROWN().bounds(model, X, BALL)


BROKEN_GRADIENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "in place on what a gradient needs": lambda h: torch.relu_(h.tanh()) + h,
    "cut": lambda h: h.detach() * 2,
}


@pytest.mark.parametrize("name", BROKEN_GRADIENTS)
def test_the_audit_needs_no_gradients(name: str) -> None:
    model = Twice(BROKEN_GRADIENTS[name], 0).eval()
    bounds = IBP().bounds(model, X, BALL)
    for z in BALL.sample(X, 100, torch.Generator().manual_seed(1), draw="corner"):
        assert bounds.contains(model(z), tolerance=1e-5).all()
    with pytest.raises(rp.UnsupportedModelError, match="wrongly with IBP"):
        Shrunk(by=0.49).bounds(copy.deepcopy(model), X, BALL)
