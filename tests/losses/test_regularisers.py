"""Terms that are added to the mixed loss: by hand, by every recipe, in `fit`, and under batch normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import network, samples
from support.toys import Unbounded
from torch import nn

import robust_plugins as rp
from robust_plugins.losses import HessianPenalty, L1Penalty, L2Penalty
from robust_plugins.testing.networks import mlp_case

BALL = rp.Linf(eps=0.05, clip=(0.0, 1.0))
PENALTIES = {
    "L1Penalty": L1Penalty(weight=0.01), "L2Penalty": L2Penalty(alpha=0.1), "HessianPenalty": HessianPenalty(alpha=0.1),
    "GradientCertLoss": rp.GradientCertLoss(ball=BALL, alpha=0.3),
}  # fmt: skip


@pytest.mark.parametrize("name", PENALTIES)
def test_the_term_of_a_mixed_loss_is_the_penalty_itself(name: str) -> None:
    case, penalty = mlp_case(normalised=False), PENALTIES[name]
    torch.manual_seed(0)
    value = rp.recipe("standard", regularisers=[penalty])(case.model, case.x, case.y)
    if name == "L1Penalty":
        alone = 0.01 * sum(p.abs().sum() for p in case.model.parameters() if p.dim() > 1)
    else:
        torch.manual_seed(0)
        alone = penalty(case.model, case.x, case.y)
    assert alone > 0
    torch.testing.assert_close(value.terms.parts[name], alone.detach())
    torch.testing.assert_close(value, F.cross_entropy(case.model(case.x), case.y) + alone)
    value.backward()
    assert case.model[0].weight.grad.abs().sum() > 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [info.name for info in rp.recipes()])
def test_every_recipe_takes_regularisers_epochs_a_ball_and_a_task(name: str) -> None:
    model, (x, y) = network(), samples()
    ball = rp.Linf(eps=0.05, clip=(0, 1))
    shared: dict[str, Any] = {"ball": ball, "epochs": 7}
    torch.manual_seed(0)
    plain = rp.recipe(name, **shared)
    torch.manual_seed(0)
    more = rp.recipe(name, **shared, regularisers=[L1Penalty(weight=2.0)], task="classification")
    assert (more.task, plain.task) == ("classification", None)
    norm = sum(p.abs().sum() for p in model.parameters() if p.dim() > 1).item()
    values = []
    for loss in (plain, more):
        torch.manual_seed(7)
        values.append(loss(model, x, y).item())
    assert values[1] == pytest.approx(values[0] + 2 * norm)
    for wrong in ({"epochs": 0}, {"epochs": "7"}, {"regularisers": ["l1"]}, {"task": "multi"}, {"ball": 0.1}):
        if name != "standard" and "ball" in wrong:
            continue  # said by the recipe itself
        with pytest.raises(rp.ArgumentError, match=next(iter(wrong))):
            rp.recipe(name, **(shared | wrong))
    assert rp.recipe(f"{name}(epochs=7)", ball=ball) == plain
    with pytest.raises(rp.UnknownNameError, match="epoch"):
        rp.recipe(name, ball=ball, epoch=7)


def test_the_bounds_on_explanations_follow_the_ramp_of_the_loss() -> None:
    case = mlp_case(normalised=False)
    penalty = rp.GradientCertLoss(ball=BALL, radius=0.02)
    loss = rp.recipe("standard", regularisers=[penalty])
    loss.schedule = rp.Ramp(start=0, end=2, shape="linear")
    loss.step(0, 0, 1)
    half = rp.GradientCertLoss(ball=BALL.scaled(0.5), radius=0.01)(case.model, case.x, case.y)
    torch.testing.assert_close(loss(case.model, case.x, case.y).terms.parts["GradientCertLoss"], half.detach())
    own = rp.GradientCertLoss(ball=BALL, radius=0.02, schedule=rp.Ramp(start=0, end=4, shape="linear"))
    loss.regularisers = [own]
    quarter = rp.GradientCertLoss(ball=BALL.scaled(0.25), radius=0.005)(case.model, case.x, case.y)
    torch.testing.assert_close(loss(case.model, case.x, case.y).terms.parts["GradientCertLoss"], quarter.detach())


@pytest.mark.filterwarnings("ignore:the ramp")
def test_training_by_a_recipe_certifies_explanations(digits: rp.Dataset) -> None:
    """With the penalty `fit` proves more of the explanations than without."""
    x, y, ball, proved = digits.x_train[:256], digits.y_train[:256], rp.Linf(eps=0.02, clip=digits.clip), []
    for regularisers in ([], [rp.GradientCertLoss(ball=ball, schedule=rp.Ramp(start=0, end=5))]):
        torch.manual_seed(0)
        model = rp.model("mlp", input_shape=digits.input_shape, classes=10, widths=(16,))
        record = rp.fit(model, list(zip(x.split(32), y.split(32), strict=True)), epochs=10, progress=False,
                        loss=rp.recipe("standard", regularisers=regularisers),
                        optimizer=torch.optim.Adam(model.parameters(), lr=0.01))  # fmt: skip
        assert record.final.clean < 1.5
        bounds = rp.explanation_certifier("interval:ibp").bounds(model, x[:32], y[:32], ball, of="logit")
        proved.append(bounds.width.mean().item())
    assert proved[1] < 0.5 * proved[0]


@pytest.mark.parametrize("name", ["L2Penalty", "HessianPenalty", "GradientCertLoss"])
def test_batch_norm_uses_the_statistics_of_the_clean_batch(name: str) -> None:
    """And the running statistics move once, as without the penalty."""
    model, (x, y) = network(normalise=True), samples()
    penalty = {"GradientCertLoss": rp.GradientCertLoss(ball=BALL)}.get(name, PENALTIES[name])
    torch.manual_seed(0)
    loss = rp.recipe("standard", regularisers=[penalty])
    value = loss(model.train(), x, y)
    value.backward()
    assert int(model[1].num_batches_tracked) == 1
    h = model[0](x)
    with torch.no_grad():
        model[1].running_mean.copy_(h.mean(0))
        model[1].running_var.copy_(h.var(0, correction=0))
    torch.manual_seed(0)
    torch.testing.assert_close(value.terms.parts[name], penalty(model.eval(), x, y).detach())


@pytest.mark.parametrize("name", ["L2Penalty", "HessianPenalty", "GradientCertLoss"])
def test_explanations_of_numbers_are_refused(name: str) -> None:
    model, (x, _) = network(1), samples()
    target = 3 * torch.rand(6, 1, dtype=x.dtype) + 2
    with pytest.raises(rp.ArgumentError, match=f"{name}, for regression.*Leave it out"):
        rp.recipe("standard", regularisers=[PENALTIES[name]])(model, x, target)
    rp.recipe("standard", regularisers=[PENALTIES["L1Penalty"]])(model, x, target)


@pytest.mark.parametrize("name", PENALTIES)
def test_one_output_and_soft_labels(name: str) -> None:
    one, many, (x, y) = network(1), network(2), samples(2)
    shares = F.one_hot(y, 2) * 0.8 + 0.1
    for model, labels, task in ((one, y, None), (nn.Sequential(*one, nn.Flatten(0)), y, None),
                                (one, y * 0.8 + 0.1, "binary"), (many, shares.double(), "classification")):  # fmt: skip
        value = rp.recipe("standard", regularisers=[PENALTIES[name]], task=task)(model, x, labels)
        assert value.terms.parts[name] > 0
        value.backward()


def test_a_model_that_cannot_be_bounded_is_refused_by_name() -> None:
    model, (x, y) = nn.Sequential(network(), Unbounded()), samples()
    with pytest.raises(rp.UnsupportedModelError):
        rp.recipe("standard", regularisers=[PENALTIES["GradientCertLoss"]])(model, x, y)


@pytest.mark.usefixtures("unchecked")
def test_parameters_that_make_no_sense() -> None:
    for wrong in (
        lambda: rp.GradientCertLoss(ball=BALL, radius=-0.1), lambda: rp.GradientCertLoss(ball=BALL, alpha=float("nan")),
        lambda: L2Penalty(alpha=float("inf")), lambda: HessianPenalty(alpha=-1.0), lambda: L1Penalty(weight=-1.0),
    ):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match="finite number >= 0"):
            wrong()
