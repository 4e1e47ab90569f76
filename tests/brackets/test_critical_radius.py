"""Critical radii: the closed forms of linear models, and what components of every kind of behaviour may lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from support.toys import SignStep, Unbounded
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.radius_plots import share_below
from robust_plugins.harness.pictures import svg

N, TOLERANCE = 12, 1e-2


@pytest.fixture
def linear() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2).double(), torch.rand(N, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    y[0] = 1 - y[0]
    return model, x, y


def exact(model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball) -> Tensor:
    """The distance of the nearest input with margin zero, within the clip range: inf where it holds none."""
    w = (model.weight[0] - model.weight[1]).detach().abs()
    logits = model(x).detach()
    radii = []
    for z, label, out in zip(x, y, logits, strict=True):
        margin = float(out[label] - out[1 - label])
        if margin < 0:
            radii.append(0.0)
            continue
        falling = (model.weight[label] < model.weight[1 - label]).detach()  # moving up lowers the margin
        low, high = ball.clip or (-torch.inf, torch.inf)
        room = torch.where(falling, high - z, z - low)

        def moved(step: float, room: Tensor = room) -> Tensor:
            if isinstance(ball, rp.Linf):
                return room.clamp(max=step)
            if isinstance(ball, rp.L2):
                return torch.minimum(step * w, room)
            left, delta = step, torch.zeros_like(room)  # L1: the steepest first
            for i in w.argsort(descending=True).tolist():
                delta[i] = min(left, float(room[i]))
                left -= float(delta[i])
            return delta

        least, most = 0.0, 100.0
        if float(w @ moved(most)) < margin:
            radii.append(float("inf"))
            continue
        for _ in range(100):
            middle = (least + most) / 2
            least, most = (least, middle) if float(w @ moved(middle)) >= margin else (middle, most)
        radii.append(float(torch.linalg.vector_norm(moved(most), ord=ball.norm)))
    return torch.tensor(radii, dtype=x.dtype)


@dataclass(frozen=True, kw_only=True)
class Follows(rp.Attack):
    """Projected steps along the steepest descent of the margin."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        z = x.clone()
        for _ in range(8):
            z.requires_grad_()
            (slope,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y, reduction="sum"), z)
            z = ball.project((z + ball.steepest(slope)).detach(), x)
        return z


@dataclass(frozen=True, kw_only=True)
class Knows(rp.Certifier):
    """Certifies each of the samples `x` below its critical radius, and nothing else."""

    x: Tensor = field(compare=False)
    truth: Tensor = field(compare=False)

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        radii = self.truth[(x.unsqueeze(1) == self.x).all(2).int().argmax(1)]
        z = model(x) if spec is None else (spec @ model(x).unsqueeze(2)).squeeze(2)
        held = (ball.eps_for(x).flatten() < radii).unsqueeze(1)
        return rp.Interval(torch.where(held, z, z - 10), z)


def bisected(
    linear: tuple[nn.Module, Tensor, Tensor], kind: type, clip: object, certifier: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The critical radii by their closed form, the largest ones asked for, and the halves of what was found; checked
    as far as they must hold for all components."""
    model, x, y = linear
    truth = exact(model, x, y, kind(eps=0.0, clip=clip))
    eps = truth[truth.isfinite()].median() * (1.4 - 0.07 * torch.arange(N, dtype=x.dtype))
    ball = kind(eps=eps, clip=clip)
    components = [Follows(), certifier or Knows(x=x, truth=truth)]
    found = rp.critical_radius(components, model, x, y, ball, tolerance=TOLERANCE, calls=40, seed=0)
    broken, certified = found
    assert found.crossings == ()
    assert broken[0] == certified[0] == truth[0] == 0
    assert bool((broken >= truth * (1 - 1e-9)).all())
    assert bool((certified <= torch.minimum(truth * (1 + 1e-9), eps)).all())
    there = broken.isfinite()
    assert torch.equal(there, found.witness.isfinite().all(1))
    assert bool((model(found.witness[there]).argmax(1) != y[there]).all())
    torch.testing.assert_close(ball.distance(found.witness, x)[there], broken[there])
    assert clip is None or bool(((found.witness >= 0) & (found.witness <= 1))[there].all())
    return truth, eps, broken, certified


@pytest.mark.parametrize("clip", [None, (0.0, 1.0)])
@pytest.mark.parametrize("kind", [rp.Linf, rp.L2, rp.L1])
def test_closed_forms_of_linear_models(linear: tuple[nn.Module, Tensor, Tensor], kind: type, clip: object) -> None:
    truth, eps, broken, certified = bisected(linear, kind, clip)
    inside = truth < eps
    assert 2 < inside.sum() < N - 1
    torch.testing.assert_close(certified, torch.minimum(truth, eps), rtol=2 * TOLERANCE, atol=0)
    assert bool((certified[~inside] == eps[~inside]).all())
    assert bool(broken[~inside].isinf().all())
    if kind is rp.Linf or clip is None:  # where steepest steps end at the nearest witness
        torch.testing.assert_close(broken[inside], truth[inside], rtol=2 * TOLERANCE, atol=0)


def test_boxes_are_exact_on_linear_models(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    truth, eps, _, certified = bisected(linear, rp.Linf, (0.0, 1.0), "interval:crown")
    torch.testing.assert_close(certified, torch.minimum(truth, eps), rtol=2 * TOLERANCE, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [rp.L2, rp.L1])
def test_dual_norms_are_exact_on_linear_models(linear: tuple[nn.Module, Tensor, Tensor], kind: type) -> None:
    truth, eps, _, certified = bisected(linear, kind, None, "lirpa:crown")
    torch.testing.assert_close(certified, torch.minimum(truth, eps), rtol=2 * TOLERANCE, atol=0)


@dataclass(frozen=True, kw_only=True)
class Radii(rp.Certifier):
    """Certifies where `holds` says so of the radius, and remembers what it was asked and certified."""

    holds: Callable[[Tensor], Tensor]
    asked: list[Tensor] = field(default_factory=list, compare=False)
    proved: list[float] = field(default_factory=list, compare=False)

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        radii = ball.eps_for(x).flatten()
        if ball.largest > 0:
            self.asked.append(x)
            self.proved.extend(radii[self.holds(radii)].tolist())
        z = model(x) if spec is None else (spec @ model(x).unsqueeze(2)).squeeze(2)
        return rp.Interval(torch.where(self.holds(radii).unsqueeze(1), z, z - 10), z)


@dataclass(frozen=True, kw_only=True)
class Nearest(rp.Attack):
    """Succeeds where `works` says so of the radius, with a witness at distance `at`."""

    at: float
    works: Callable[[Tensor], Tensor]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        step = self.at * (model.weight[1] - model.weight[0]).sign() * (1 - 2 * y).unsqueeze(1)
        return torch.where(self.works(ball.eps_for(x).flatten()).unsqueeze(1), x + step, x)


def test_what_is_stated_was_certified_itself(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = linear
    islands = Radii(holds=lambda r: (r < 0.02) | ((r > 0.1) & (r < 0.2)) | ((r > 0.5) & (r < 0.55)))
    found = rp.critical_radius(islands, model, x[1:], y[1:], rp.Linf(eps=1.6, clip=None), tolerance=0.2, calls=30)
    assert found.empirical is None
    assert {*found.certified.tolist()} <= {*islands.proved}
    assert bool((found.certified > 0).all())
    never = rp.critical_radius(Radii(holds=lambda r: r < 0), model, x, y, rp.Linf(eps=1.0, clip=None), calls=7)
    assert never.certified.tolist() == [0.0] * N
    assert never.rows[0].calls == 7


def test_a_witness_brings_its_own_distance(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = linear
    ball = rp.Linf(eps=50.0, clip=None)
    far = float(exact(model, x, y, ball).max()) * 1.01
    found = rp.critical_radius(Nearest(at=far, works=lambda r: r > 3), model, x[1:], y[1:], ball, tolerance=0.9)
    torch.testing.assert_close(found.empirical, torch.full((N - 1,), far, dtype=x.dtype))
    assert found.certified is None
    assert found.rows[0].calls == 2, "the first call finds it, far inside its radius; then nothing at half its distance"
    fickle = Nearest(at=far, works=lambda r: r < 40)
    assert bool(rp.critical_radius(fickle, model, x[1:], y[1:], ball).empirical.isinf().all())


def test_decided_samples_drop_out(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = linear
    radii = torch.linspace(0.01, 0.9, N, dtype=x.dtype)
    spy = Radii(holds=lambda r: r <= 0.3)
    found = rp.critical_radius(spy, model, x, y, rp.Linf(eps=radii, clip=None), tolerance=0.05)
    sizes = [len(asked) for asked in spy.asked]
    whole = int((radii[1:] <= 0.3).sum())
    assert sizes[0] == N - 1, "not the misclassified one"
    assert sizes[1] == N - 1 - whole
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[1]
    assert found.rows[0].asked == sum(sizes)
    torch.testing.assert_close(found.certified[1:], radii[1:].clamp(max=0.3), rtol=0.06, atol=0)
    assert torch.equal(found.certified[1 : whole + 1], radii[1 : whole + 1])


def test_certifiers_that_search_give_both_sides(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 3)
    y, ball = model(x).argmax(1), rp.Linf(eps=2.0, clip=None)
    found = rp.critical_radius("interval:branch-and-bound(timeout=10)", model, x, y, ball, tolerance=0.02)
    assert found.complete
    assert bool((found.certified < found.empirical).all())
    assert bool((found.empirical <= found.certified * 1.05).all() or found.empirical.isinf().any())
    assert bool((model(found.witness).argmax(1) != y)[found.empirical.isfinite()].all())


def test_contradictions_are_found(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = linear
    ball = rp.Linf(eps=0.3, clip=None)
    truth = exact(model, x, y, ball)
    unsound = Radii(holds=lambda r: r < 0.2)
    found = rp.critical_radius([SignStep(), unsound], model, x, y, ball, seed=0)
    wrong = (truth > 0) & (truth < 0.19)
    assert {crossing.sample for crossing in found.crossings} == {*wrong.nonzero().flatten().tolist()}
    assert "CONTRADICTION" in str(found)
    assert f"{SignStep()} reached" in str(found)
    assert len(found.to_dict()["crossings"]) == len(found.crossings) > 0


def test_no_answer_is_no_number() -> None:
    model = nn.Sequential(nn.Linear(3, 4), Unbounded())
    x = torch.rand(3, 3)
    found = rp.critical_radius("interval:ibp", model, x, model(x).argmax(1), rp.Linf(eps=0.1, clip=None))
    assert found.certified is None
    assert "Unbounded" in str(found)
    empty = rp.critical_radius(["interval:ibp"], nn.Linear(3, 2), x[:0], torch.zeros(0).long(), rp.L1(eps=1, clip=None))
    assert empty.certified.shape == (0,)
    assert "no sample" in svg(empty.plot(), "radii")
    assert "interval:ibp" in str(empty)


def test_the_picture_shows_the_distribution(linear: tuple[nn.Module, Tensor, Tensor]) -> None:
    radii = torch.tensor([0.1, 0.3, torch.inf, 0.3])
    assert share_below(radii, torch.tensor([0.0, 0.1, 0.2, 0.3])) == [0.0, 0.25, 0.25, 0.75]
    model, x, y = linear
    found = rp.critical_radius([SignStep(), "interval:ibp"], model, x, y, rp.Linf(eps=0.1, clip=(0, 1)), seed=0)
    picture = found.plot()._repr_svg_()
    assert picture.startswith("<svg")
    for text in ("interval:ibp (certified)", "(attacked)", "not known", "radius (Linf, input units)"):
        assert text in picture
    assert picture == found.plot()._repr_svg_()
    one = rp.critical_radius("interval:ibp", model, x, y, rp.Linf(eps=0.1, clip=(0, 1)))
    assert "not known" not in one.plot()._repr_svg_()
    table = str(found)
    broken = found.rows[0].broken
    assert f"{int(broken.isfinite().sum())} of {N}" in table
    assert found.to_dict()["bracket"]["empirical"].count(None) == int(broken.isinf().sum())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"tolerance": 0.0}, "tolerance"), ({"calls": 0}, "calls"), ({"component": []}, "Name one")],
)
def test_arguments(arguments: dict[str, object], message: str) -> None:
    model, x = nn.Linear(3, 2), torch.rand(2, 3)
    given = {"component": "interval:ibp", "tolerance": 0.01, "calls": 20} | arguments
    ball = rp.Linf(eps=0.1, clip=(0, 1))
    with pytest.raises(rp.ArgumentError, match=message):
        rp.critical_radius(model=model, x=x, y=torch.tensor([0, 1]), ball=ball, **given)
    assert (
        rp.critical_radius("interval:ibp", model, x, torch.tensor([0, 1]), replace(ball, eps=[0.1, 0.2])).certified
        is not None
    )
