"""Ambient modes and wrappers of the model: the same loss, or a refusal that says what to do."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from support.by_hand import BALL, fixed, mixed_ibp, network, samples
from torch import nn
from torch.optim.swa_utils import AveragedModel

import robust_plugins as rp
from robust_plugins.losses import HessianPenalty, L1Penalty, L2Penalty, WarmUp


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_under_autocast(worst: str) -> None:
    model, (x, y) = network().float(), samples()
    loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
    full = loss(model, x.float(), y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss(model, x.float(), y)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    if worst == "interval:ibp":
        assert half.terms.worst.item() == full.terms.worst.item()  # bounds are not computed in half precision
    half.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_wrapped_models(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, (x, y) = network(), samples()
    for worst in ("interval:ibp", "art:fgsm"):
        loss = rp.MixedLoss(worst=worst, gamma=0.5, ball=BALL, schedule=fixed())
        expected = torch.autograd.grad(loss(model, x, y), list(model.parameters()))
        found = torch.autograd.grad(loss(wrap(model), x, y), list(model.parameters()))
        torch.testing.assert_close(found, expected)


def test_the_model_is_left_as_found() -> None:
    model, (x, y) = network(normalise=True), samples()
    model[0].bias.requires_grad_(False)
    model[1].eval()
    model.zero_grad()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attack, certifier = rp.attack("art:pgd", steps=2), rp.certifier("interval:ibp")
    loss = mixed_ibp(worst=rp.losses.SmallBox(attack=attack, certifier=certifier, ratio=0.5))
    loss(model, x, y).backward()
    assert [m.training for m in model.modules()] == [True, True, False, True, True]
    assert model[0].bias.grad is None
    assert model[0].weight.grad is not None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@contextmanager
def _doubles() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SOURCES = ["art:fgsm", "interval:ibp", "interval:crown-ibp", "lirpa:ibp"]


@pytest.mark.parametrize("worst", [*SOURCES, "trades"])
@pytest.mark.parametrize("normalise", [False, True])
def test_without_gradients_and_with_other_defaults_it_is_the_same_number(worst: str, normalise: bool) -> None:
    model, (x, y) = network(normalise=normalise).float(), samples()
    x = x.float()
    loss = rp.recipe("trades", ball=BALL) if worst == "trades" else mixed_ibp(worst=worst)

    def value() -> float:
        torch.manual_seed(3)
        return loss(copy.deepcopy(model), x, y).item()

    expected = value()
    with torch.no_grad():
        assert value() == expected
    with _doubles():
        assert value() == pytest.approx(expected, rel=1e-5)
        torch.manual_seed(3)
        loss(model, x, y).backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("name", ["WarmUp", "GradientCertLoss", "L2Penalty", "HessianPenalty", "L1Penalty"])
def test_regularisers_are_those_of_full_precision_under_autocast(name: str, normalise: bool) -> None:
    """Batch norm, which bounds have to trace, included."""
    model, (x, y) = network(normalise=normalise).float(), samples()
    x = x.float()
    penalty = {
        "WarmUp": WarmUp(tolerance=0.9), "GradientCertLoss": rp.GradientCertLoss(ball=BALL), "L2Penalty": L2Penalty(),
        "HessianPenalty": HessianPenalty(), "L1Penalty": L1Penalty(weight=1.0),
    }[name]  # fmt: skip
    loss = mixed_ibp(gamma=1.0, schedule=lambda epoch: 0.5, regularisers=[penalty])
    torch.manual_seed(0)
    full = loss(model, x, y).terms.parts[name].item()
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(model, x, y)
    assert full > 0
    # The statistics of the batch are those of the forward pass in half precision.
    assert value.terms.parts[name].item() == (pytest.approx(full, rel=0.05) if normalise else full)
    value.backward()


@pytest.mark.parametrize("worst", SOURCES)
def test_bounds_and_attacks_on_batch_norm_under_autocast(worst: str) -> None:
    model, (x, y) = network(normalise=True).float(), samples()
    for mode in (model.train, model.eval):
        mode()
        full = mixed_ibp(worst=worst)(model, x.float(), y).item()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = mixed_ibp(worst=worst)(model, x.float(), y)
        assert half.item() == pytest.approx(full, rel=0.05)


def test_under_inference_mode_it_says_that_training_needs_gradients() -> None:
    """And what is said helps; tensors that were made there are fine elsewhere."""
    model, (x, y) = network(), samples()
    loss, penalties = mixed_ibp(), (L2Penalty(), HessianPenalty(), rp.GradientCertLoss(ball=BALL))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.inference_mode():
        made = x.clone(), y.clone()
        calls = [lambda: loss(model, x, y), lambda: rp.recipe("standard")(model, x, y)]
        calls += [lambda penalty=penalty: penalty(model, x, y) for penalty in penalties]
        calls += [lambda: rp.fit(model, [(x, y)], loss, epochs=1, optimizer=optimizer, progress=False)]
        calls += [lambda: rp.train(model, x, y, epochs=1, seed=0)]
        for call in calls:
            with pytest.raises(
                rp.ArgumentError, match=r"torch\.inference_mode\(\).*training needs.*torch\.no_grad\(\)"
            ):
                call()
    expected = loss(model, x, y)
    with torch.no_grad():
        assert loss(model, x, y).item() == expected.item()
        assert all(penalty(model, x, y) > 0 for penalty in penalties[:1])
    value = loss(model, *made)
    assert value.item() == expected.item()
    value.backward()
    for penalty in penalties:
        penalty(model, *made).backward()
    with torch.no_grad():  # training needs gradients, wherever it is called
        rp.fit(model, [made], rp.recipe("standard"), epochs=1, optimizer=optimizer, progress=False)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("worst", ["interval:ibp", "art:fgsm"])
def test_averaged_models_and_wrappers_inside_of_models(worst: str) -> None:
    model, (x, y) = network(), samples()
    expected = mixed_ibp(worst=worst)(model, x, y).item()
    inside = nn.Sequential(nn.DataParallel(model[0]), torch.compile(model[1], backend="eager"), model[2])
    for wrapped in (AveragedModel(model), nn.DataParallel(AveragedModel(model)), inside):
        assert mixed_ibp(worst=worst)(wrapped, x, y).item() == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_model_is_attacked_and_refused_by_bounds() -> None:
    model, (x, y) = network(), samples()
    traced = torch.jit.trace(model, x)
    assert mixed_ibp(worst="art:fgsm")(traced, x, y).item() == mixed_ibp(worst="art:fgsm")(model, x, y).item()
    with pytest.raises(rp.UnsupportedModelError):
        mixed_ibp()(traced, x, y)


@pytest.mark.parametrize("worst", SOURCES)
def test_inputs_are_left_alone_by_a_first_layer_that_works_in_place(worst: str) -> None:
    model, (x, y) = network(), samples()
    inplace = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), *model)
    before = x.clone()
    if worst.startswith("interval") or worst == "art:fgsm":
        value = mixed_ibp(worst=worst)(inplace, x, y)
        assert value.item() == pytest.approx(mixed_ibp(worst=worst)(model, x, y).item())
    else:
        with contextlib.suppress(rp.RobustPluginsError):
            mixed_ibp(worst=worst)(inplace, x, y)
    assert torch.equal(x, before)
