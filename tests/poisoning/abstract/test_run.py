"""What a run proves: no model of its set, at no input of the ball, does otherwise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.small_trainings import data, network, train
from torch import Tensor
from torch.func import functional_call

import robust_plugins as rp
from robust_plugins.errors import ArgumentError
from robust_plugins.intervals import Interval
from robust_plugins.poisoning.abstract.privacy import private_response

Models = list[dict[str, Tensor]]


def sampled(run: rp.PoisoningRun, n: int = 200) -> Models:
    """Parameters from the run's box: random ones and corners."""
    g = torch.Generator().manual_seed(0)
    found = []
    for index in range(n):
        share = {k: torch.rand(p.shape, generator=g, dtype=p.dtype) for k, p in run.parameters.items()}
        if index % 2:
            share = {k: s.round() for k, s in share.items()}
        found.append({k: p.lower + share[k] * p.width for k, p in run.parameters.items()})
    return found


def outputs(run: rp.PoisoningRun, models: Models, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([functional_call(run.nominal, m, (x,)) for m in models])


@pytest.fixture(scope="module")
def run() -> rp.PoisoningRun:
    return train(network(3), data(40, 20, classes=3), rp.PoisoningBudget(points=1, eps=0.02), epochs=3)


@pytest.mark.parametrize(
    "ball", [None, rp.Linf(eps=0.05, clip=None), rp.L2(eps=0.1, clip=None), rp.L1(eps=0.1, clip=None)]
)
def test_every_query_holds_for_every_model(run: rp.PoisoningRun, ball: rp.Linf | None) -> None:
    x, y = data(60, 60, classes=3)[0]
    models = sampled(run)
    points = [x] if ball is None else [*ball.sample(x, 5, draw="corner"), *ball.sample(x, 3)]
    z = torch.cat([outputs(run, models, p) for p in points])
    bounds = run.logits(x, ball=ball)
    assert bool(bounds.contains(z, tolerance=1e-12).all())
    certain = run.certified_prediction(x, ball=ball)
    assert 0 < int((certain >= 0).sum()) < 60
    assert bool(((z.argmax(2) == certain) | (certain < 0)).all())
    assert run.certified_accuracy(x, y, ball=ball) == (certain == y).double().mean()
    assert run.certified_accuracy(x, y, ball=ball) <= (z.argmax(2) == y).double().mean(1).min()
    for target in range(3):
        excluded = run.excludes(x, target, ball=ball)
        assert bool(((z.argmax(2) != target) | ~excluded).all())
        assert bool((excluded >= ((certain >= 0) & (certain != target))).all())
    both = run.excludes(x, [0, 1], ball=ball)
    assert torch.equal(both, run.excludes(x, 0, ball=ball) & run.excludes(x, 1, ball=ball))
    losses = torch.stack([torch.nn.functional.cross_entropy(m, y, reduction="none") for m in z])
    worst = run.worst_loss(x, y, ball=ball, reduction="none")
    assert bool((losses <= worst + 1e-12).all())
    assert run.worst_loss(x, y, ball=ball) == pytest.approx(worst.mean().item())


def test_balls_only_loosen(run: rp.PoisoningRun) -> None:
    x, y = data(60, 60, classes=3)[0]
    accuracies = [run.certified_accuracy(x, y)] + [
        run.certified_accuracy(x, y, ball=rp.Linf(eps=e, clip=None)) for e in (0.0, 0.05, 0.2)
    ]
    assert accuracies[0] == accuracies[1] >= accuracies[2] >= accuracies[3]


def test_an_input_that_no_ball_is_around_is_refused(run: rp.PoisoningRun, unchecked: None) -> None:
    """Cut to the valid range, the ball would not hold the input itself."""
    x, y = data(6, 6, classes=3)[0]
    for query in (run.certified_prediction, run.logits, lambda x, ball: run.worst_loss(x, y, ball=ball)):
        with pytest.raises(ArgumentError, match="clip range"):
            query(x, ball=rp.Linf(eps=0.1, clip=(x.min().item() + 0.01, 5.0)))
        with pytest.raises(ArgumentError, match="finite"):
            query(x * math.nan, ball=rp.Linf(eps=0.1, clip=None))


def test_parts_of_the_batch_give_the_whole(run: rp.PoisoningRun, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data(60, 60, classes=3)[0]
    ball = rp.Linf(eps=[0.001 * i for i in range(60)], clip=None)
    whole = run.logits(x, ball=ball), run.worst_loss(x, y, ball=ball)
    monkeypatch.setattr("robust_plugins.poisoning.abstract.run.CHUNK", 7)
    parts = run.logits(x, ball=ball), run.worst_loss(x, y, ball=ball)
    assert torch.allclose(whole[0].lower, parts[0].lower, atol=1e-12)
    assert whole[1] == pytest.approx(parts[1])


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "hinge"])
def test_one_logit(loss: str) -> None:
    batches = [(x, 2.0 * y - 1 if loss == "hinge" else y.double()) for x, y in data(40, 20)]
    run = train(network(1), batches, rp.PoisoningBudget(points=1, eps=0.05), loss=loss, epochs=3)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    z = outputs(run, sampled(run), x)
    certain = run.certified_prediction(x)
    assert bool((((z[..., 0] > 0).long() == certain) | (certain < 0)).all())
    right = (z[..., 0] > 0) == (y > 0)
    assert 0 < run.certified_accuracy(x, y) <= right.double().mean(1).min()
    assert torch.equal(run.excludes(x, 0), certain == 1)


def test_regression() -> None:
    batches = [(x, x.sum(1)) for x, _ in data(40, 20)]
    budget = rp.PoisoningBudget(labels=2, label_radius=0.1)
    run = train(network(1), batches, budget, loss="mse", optimizer=rp.SGD(lr=0.05), epochs=3, validation=batches[0])
    x, y = batches[0]
    squares = ((outputs(run, sampled(run), x)[..., 0] - y) ** 2).mean(1)
    assert squares.max() <= run.worst_loss(x, y)
    assert run.history[-1].certified == run.worst_loss(x, y)
    assert run.history[-1].nominal == pytest.approx(((run.nominal(x)[:, 0] - y) ** 2).mean().item())
    with pytest.raises(ArgumentError, match="`loss` is 'mse'; accepted: a loss of classes for certified_accuracy"):
        run.certified_accuracy(x, y)


def test_outward_queries_hold_in_floating_point() -> None:
    """Without poison nothing but rounding is left between the bounds and what the nominal model computes."""
    x, y = data(60, 60, classes=3, dtype=torch.float32)[0]
    batches = data(40, 20, classes=3, dtype=torch.float32)
    for rounding in ("outward", "nearest"):
        run = train(network(3, dtype=torch.float32), batches, rp.PoisoningBudget(), rounding=rounding, epochs=3)
        with torch.no_grad():
            z = run.nominal(x)
            losses = torch.nn.functional.cross_entropy(z, y, reduction="none")
        held = [bool(run.logits(x).contains(z).all()), bool((losses <= run.worst_loss(x, y, reduction="none")).all())]
        assert all(held) if rounding == "outward" else not all(held)


def test_the_zonotope_only_tightens() -> None:
    budget = rp.PoisoningBudget(labels=1)
    box, zonotope = (train(network(), data(40, 40), budget, epochs=4, domain=d) for d in ("box", "zonotope"))
    x, y = data(60, 60)[0]
    assert zonotope.width < box.width
    assert bool((zonotope.logits(x).width <= box.logits(x).width + 1e-12).all())
    assert zonotope.certified_accuracy(x, y) >= box.certified_accuracy(x, y)


def test_unlearned() -> None:
    x, _ = data(60, 60)[0]
    run = train(network(), data(200, 100), rp.PoisoningBudget.removal(1), clip_gradient=0.2)
    assert torch.equal(run.unlearned(x), run.certified_prediction(x) >= 0)
    other = train(network(), data(), rp.PoisoningBudget(points=1, eps=0.01))
    with pytest.raises(ArgumentError, match=r"accepted: PoisoningBudget.removal\(k\)"):
        other.unlearned(x)


@pytest.mark.parametrize("k", [1, 2, 6, 7, 30, 400])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 5.0])
def test_a_certificate_that_fails_for_a_neighbour_costs_no_more_than_epsilon(k: int, epsilon: float) -> None:
    """Two neighbours with one response, of which only one is certified: the released classes are as likely."""
    response, stable = torch.tensor([True, True]), torch.tensor([True, False])
    keeps = private_response(response, stable, k=k, epsilon=epsilon, generator=None).keeps
    for p in (keeps, 1 - keeps):
        assert abs(p[0].log() - p[1].log()) <= epsilon
    assert keeps[0] > keeps[1]


def test_private_predictions() -> None:
    x, _ = data(200, 200)[0]
    run = train(network(), data(200, 100), rp.PoisoningBudget.privacy(2), clip_gradient=0.05)
    stable = run.certified_prediction(x) >= 0
    found = run.private_prediction(x, 6.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.stable, stable)
    assert 0 < int(stable.sum()) < 200
    assert torch.allclose(found.sensitivity, torch.where(stable, math.exp(-2.0), 1.0).double())
    # The share of releases that are the model's own class is what `keeps` says: the distribution function of Cauchy.
    own = run.nominal(x).argmax(1)
    g = torch.Generator().manual_seed(1)
    kept = torch.stack([run.private_prediction(x, 6.0, generator=g).released == own for _ in range(400)]).double()
    assert abs(kept[:, stable].mean() - found.keeps[stable].mean()) < 0.01
    assert abs(kept[:, ~stable].mean() - found.keeps[~stable].mean()) < 0.05
    with pytest.raises(ArgumentError, match="`epsilon` is 0"):
        run.private_prediction(x, 0.0)
    other = train(network(), data(), rp.PoisoningBudget(points=1, eps=0.01))
    with pytest.raises(ArgumentError, match=r"accepted: PoisoningBudget.privacy\(k\)"):
        other.private_prediction(x, 1.0)
    three = train(network(3), data(classes=3), rp.PoisoningBudget.privacy(1), clip_gradient=0.001)
    with pytest.raises(ArgumentError, match="classified among 3 classes"):
        three.private_prediction(x, 1.0)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (lambda r, x, y: r.logits(x.float()), "`x` is torch.float32; accepted: a tensor of torch.float64"),
        (lambda r, x, y: r.certified_accuracy(x, y[:3]), "`y` is 3 labels; accepted: 60, one per sample"),
        (lambda r, x, y: r.certified_accuracy(x, y + 1), "accepted: class indices from 0 to 2"),
        (lambda r, x, y: r.excludes(x, 3), "`target` is 3; accepted: classes from 0 to 2"),
        (lambda r, x, y: r.worst_loss(x, y, reduction="sum"), "`reduction` is 'sum'"),
    ],
)
def test_wrong_queries_are_named(run: rp.PoisoningRun, query: Any, message: str, unchecked: None) -> None:
    with pytest.raises(ArgumentError, match=message):
        query(run, *data(60, 60, classes=3)[0])


def test_a_planted_fault_is_found(run: rp.PoisoningRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of the center alone, instead of the whole box, miss models of the set."""
    x, _ = data(60, 60, classes=3)[0]
    z = outputs(run, sampled(run), x)
    points = {k: Interval.point(p.center) for k, p in run.parameters.items()}
    wrong = rp.PoisoningRun(run.nominal, points, run.history, run.budget, run.loss)
    assert not bool(wrong.logits(x).contains(z, tolerance=1e-12).all())
