"""`interval:branch-and-bound`: verdicts, witnesses, limits of time, and what it refuses."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.decisions.verifier.attack import MarginDescent
from robust_plugins.testing.certifiers import is_frozen_data, nan_is_an_error

NAME = "interval:branch-and-bound"
CHECKS = [is_frozen_data, nan_is_an_error]
"""The others are among the slow tests of all built-in components."""


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check) -> None:
    check(rp.certifier(NAME, timeout=5.0, root_steps=2))


def network(seed: int, *, inputs: int = 5, width: int = 12, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    ).eval()


def test_every_sample_is_decided_and_witnesses_hold() -> None:
    """Around the radii at which decisions change, nothing is left open; no point sampled contradicts a proof."""
    model, x = network(0), torch.rand(6, 5)
    y = model(x).argmax(1)
    seen = set()
    for eps in (0.02, 0.2, 0.4):
        ball = rp.Linf(eps=eps, clip=None)
        found = rp.certifier(NAME, timeout=20.0)(model, x, y, ball)
        decisions = model(ball.sample(x, 2000, torch.Generator().manual_seed(0)).flatten(0, 1)).argmax(1).view(2000, -1)
        for i, verdict in enumerate(found.verdicts):
            seen.add(verdict)
            if verdict is rp.Verdict.CERTIFIED:
                assert (decisions[:, i] == y[i]).all()
                assert found.margin[i] > 0
            else:
                assert verdict is rp.Verdict.FALSIFIED
                witness = found.witness[i : i + 1]
                assert ball.contains(witness, x[i : i + 1], tolerance=0).all()
                assert model(witness).argmax(1) != y[i]
    assert seen == {rp.Verdict.CERTIFIED, rp.Verdict.FALSIFIED}


def test_it_proves_what_relaxation_does_not() -> None:
    model, x = network(3), torch.rand(8, 5, generator=torch.Generator().manual_seed(1))
    y, ball = model(x).argmax(1), rp.Linf(eps=0.8, clip=None)
    complete = rp.certifier(NAME)(model, x, y, ball).certified
    relaxed = rp.certifier("interval:alpha-crown")(model, x, y, ball).certified
    assert (complete | ~relaxed).all()
    assert complete.sum() > relaxed.sum()


def test_the_same_seed_gives_the_same_certificate() -> None:
    model, x = network(1), torch.rand(4, 5)
    y, ball = model(x).argmax(1), rp.Linf(eps=0.25, clip=None)
    one, two = (rp.certifier(NAME, seed=7)(model, x, y, ball) for _ in range(2))
    assert one.verdicts == two.verdicts
    assert torch.equal(one.witness.nan_to_num(), two.witness.nan_to_num())
    assert torch.equal(one.margin, two.margin)


def test_time_is_kept() -> None:
    """A network that is too hard for a second takes a second, and says what it has proved."""
    model = network(0, inputs=30, width=150, classes=2)
    x = torch.rand(1, 30, generator=torch.Generator().manual_seed(0))
    y, ball = model(x).argmax(1), rp.Linf(eps=0.06, clip=None)
    start = time.process_time()
    found = rp.certifier(NAME, timeout=1.0, clock="cpu")(model, x, y, ball)
    seconds = time.process_time() - start
    assert found.verdicts == (rp.Verdict.TIMEOUT,)
    assert "time" in found.messages[0]
    assert seconds < 2  # loads what is loaded once, too
    logits = model(ball.sample(x, 500).flatten(0, 1))
    assert found.margin[0] <= (logits[:, y] - logits[:, 1 - y]).min()
    assert found.margin[0] > rp.certifier("interval:alpha-crown", steps=20)(model, x, y, ball).margin[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_relaxation_proves_is_neither_attacked_nor_searched(dtype) -> None:
    """In a batch where it proves some: what it states holds at every point sampled."""
    model, x = network(0).to(dtype), torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    y, ball, attacked = model(x).argmax(1), rp.Linf(eps=0.2, clip=None), []
    usual = MarginDescent()

    def noted(*arguments):
        attacked.append(arguments[1])
        return usual(*arguments)

    plain = rp.certifier("interval:crown")(model, x, y, ball)
    found = rp.certifier(NAME, attack=noted)(model, x, y, ball)
    proved = [v is rp.Verdict.CERTIFIED for v in plain.verdicts]
    assert any(proved)
    assert not all(proved)
    assert len(attacked) == proved.count(False)
    assert all(v is rp.Verdict.CERTIFIED for v, p in zip(found.verdicts, proved, strict=True) if p)
    logits = model(ball.sample(x, 500, torch.Generator().manual_seed(0)).flatten(0, 1)).view(500, 6, 3)
    others = logits.masked_fill(torch.nn.functional.one_hot(y, 3).bool(), -torch.inf).amax(2)
    least = (logits.gather(2, y.expand(500, 6).unsqueeze(2))[..., 0] - others).amin(0)
    assert bool((found.margin <= least).all())


def test_smooth_networks_of_many_inputs_stay_unknown() -> None:
    """Where one bound does not suffice; a small ball is certified by it."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2)).eval(), torch.rand(1, 40)
    small, large = (
        rp.certifier(NAME)(model, x, model(x).argmax(1), rp.Linf(eps=eps, clip=None)) for eps in (1e-4, 0.1)
    )
    assert small.verdicts == (rp.Verdict.CERTIFIED,)
    assert large.verdicts != (rp.Verdict.CERTIFIED,)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("timeout", 0.0), ("timeout", float("inf")), ("memory", 0), ("steps", True), ("batch", 1.5), ("branching", None)],
)
def test_unusable_parameters(parameter, value) -> None:
    with pytest.raises(rp.ArgumentError, match=parameter):
        rp.certifier(NAME, **{parameter: value})


def test_progress_says_what_happens(capsys) -> None:
    model, x = network(0), torch.rand(2, 5)
    rp.certifier(NAME, progress=True)(model, x, model(x).argmax(1), rp.Linf(eps=0.05, clip=None))
    said = capsys.readouterr().err
    assert "sample 0: certified" in said
    assert "domains" in said


@pytest.mark.parametrize("kind", [rp.Linf, rp.L2, rp.L1])
def test_models_without_a_gradient_are_decided(kind) -> None:
    """A layer that changes in place what its backward pass needs rules out attacks by gradients, and nothing else."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sigmoid(), nn.SELU(inplace=True), nn.Linear(3, 2)).double().eval()
    x = torch.rand(2, 3, dtype=torch.float64)
    with torch.no_grad():
        model[-1].bias -= model(torch.zeros(1, 3, dtype=torch.float64))[0]  # the decision changes there
        y = model(x).argmax(1)
    with pytest.raises(RuntimeError, match="inplace"):
        model(x.clone().requires_grad_()).sum().backward()
    for eps in (1e-3, 10.0):  # at the second one relaxation is not enough, and the attack is tried
        certificate = rp.certifier(NAME, timeout=2)(model, x, y, kind(eps=eps, clip=None))
        assert set(certificate.verdicts) == {rp.Verdict.CERTIFIED if eps < 1 else rp.Verdict.FALSIFIED}
