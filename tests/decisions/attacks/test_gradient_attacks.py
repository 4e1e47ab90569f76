"""Attacks by gradients, through the public call: strength where losses saturate, and odd inputs and models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks.objectives import margin

pytestmark = pytest.mark.usefixtures("unchecked")

ATTACKS = {
    "rp:fgsm": {},
    "rp:pgd": {"steps": 8},
    "rp:margin-pgd": {"steps": 8},
    "rp:apgd": {"steps": 12},
}
ITERATED = [name for name in ATTACKS if name != "rp:fgsm"]
BALLS = {rp.Linf: 0.05, rp.L2: 0.4, rp.L1: 1.5}


class Scaled(nn.Module):
    """The logits of a model times a factor."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.model(x)


class NanSlope(nn.Module):
    """The same logits, with a gradient of NaN for the first sample."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: torch.cat([torch.nan * gradient[:1], gradient[1:]]))
        return logits


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)).eval()
    x = torch.rand(24, 20)
    return model, x, model(x).argmax(1)


def attack(name: str, **parameters: object) -> rp.Attack:
    return rp.attack(name, **(ATTACKS[name] | parameters))


def reached(model: nn.Module, x: Tensor, y: Tensor, result: rp.AttackResult) -> Tensor:
    with torch.no_grad():
        return margin(model(result.x_adv), y) - margin(model(x), y)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", BALLS)
def test_every_norm_is_attacked(case: tuple[nn.Module, Tensor, Tensor], name: str, norm: type[rp.Ball]) -> None:
    model, x, y = case
    radii = [0.0, BALLS[norm]] * 12
    result = attack(name)(model, x, y, norm(eps=radii, clip=(0.0, 1.0)), seed=0)
    gained = reached(model, x, y, result)
    assert (gained[1::2] > 0).all()
    assert torch.equal(result.x_adv[::2], x[::2])
    assert norm(eps=radii, clip=(0.0, 1.0)).contains(result.x_adv, x).all()
    wider = attack(name)(model, x, y, norm(eps=[3 * r for r in radii], clip=(0.0, 1.0)), seed=0)
    assert wider.success.sum() > result.success.sum()


@pytest.mark.parametrize("loss", ["margin", "dlr", "cross_entropy"])
@pytest.mark.parametrize("name", ["rp:fgsm", "rp:pgd", "rp:apgd", "rp:margin-pgd"])
def test_large_logits_blind_cross_entropy_alone(case: tuple[nn.Module, Tensor, Tensor], name: str, loss: str) -> None:
    model, x, y = case
    if (name, loss) == ("rp:margin-pgd", "cross_entropy"):
        with pytest.raises(rp.ArgumentError, match="rp:pgd"):
            rp.attack(name, loss=loss)
        return
    ball = rp.Linf(eps=0.05, clip=(0.0, 1.0))
    parameters = {"loss": loss} | ({"start": "none"} if name == "rp:pgd" else {})
    plain = attack(name, **parameters)(model, x, y, ball, seed=0).success
    saturated = attack(name, **parameters)(Scaled(model, 1e4), x, y, ball, seed=0).success
    assert plain.any()
    if loss == "cross_entropy":
        assert saturated.sum() < plain.sum()
    else:
        assert saturated.sum() >= plain.sum() - 1


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", BALLS)
def test_a_gradient_of_nan_spoils_no_other_sample(
    case: tuple[nn.Module, Tensor, Tensor], name: str, norm: type[rp.Ball]
) -> None:
    model, x, y = case
    ball = norm(eps=BALLS[norm], clip=(0.0, 1.0))
    parameters = {"start": "none"} if name == "rp:pgd" else {}
    healthy = attack(name, **parameters)(model, x, y, ball, seed=0)
    result = attack(name, **parameters)(NanSlope(model), x, y, ball, seed=0)
    torch.testing.assert_close(result.x_adv[1:], healthy.x_adv[1:])
    assert result.x_adv[0].isfinite().all()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("norm", BALLS)
def test_a_sample_does_not_depend_on_its_batch(
    case: tuple[nn.Module, Tensor, Tensor], name: str, norm: type[rp.Ball]
) -> None:
    model, x, y = case
    model, x = nn.Sequential(model).double(), x.double()
    parameters = {"start": "none"} if name == "rp:pgd" else {}
    together = attack(name, **parameters)(model, x, y, norm(eps=BALLS[norm], clip=(0.0, 1.0)), seed=0)
    alone = attack(name, batch_size=5, **parameters)(model, x, y, norm(eps=BALLS[norm], clip=(0.0, 1.0)), seed=0)
    model.float()
    torch.testing.assert_close(alone.x_adv, together.x_adv)


@pytest.mark.parametrize("name", ATTACKS)
def test_targets_are_approached(case: tuple[nn.Module, Tensor, Tensor], name: str) -> None:
    model, x, y = case
    ball = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    for target in ((y + 1) % 5, "random", "least_likely"):
        result = attack(name)(model, x, y, ball, target=target, seed=0)
        with torch.no_grad():
            before = nn.functional.cross_entropy(model(x), result.target, reduction="none")
        assert (result.loss < before).float().mean() > 0.9
    with pytest.raises(rp.ArgumentError, match="wrong class"):
        attack(name)(model, x, y, ball, target=y)


@pytest.mark.parametrize("name", ATTACKS)
def test_models_of_one_output_and_of_two_classes(name: str) -> None:
    torch.manual_seed(1)
    one = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).eval()
    two = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).eval()
    x = torch.rand(12, 6)
    for model in (one, two):
        with torch.no_grad():
            y = (model(x).flatten() > 0).long() if model is one else model(x).argmax(1)
        parameters = {"targets": 3} if name in {"rp:margin-pgd", "rp:apgd"} else {}  # more than there are
        result = attack(name, **parameters)(model, x, y, rp.Linf(eps=0.5, clip=(0.0, 1.0)), seed=0)
        assert result.success.any()
        with pytest.raises(rp.ArgumentError, match="'dlr' for a model of 2 classes"):
            attack(name, loss="dlr")(model, x, y, rp.Linf(eps=0.5, clip=(0.0, 1.0)), seed=0)


@pytest.mark.parametrize("name", ITERATED)
def test_runs_towards_classes_and_restarts_only_add(case: tuple[nn.Module, Tensor, Tensor], name: str) -> None:
    _, x, _ = case
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(nn.Linear(20, 64), 8.0), nn.ReLU(), Scaled(nn.Linear(64, 5), 8.0)).eval()
    y, ball = model(x).argmax(1), rp.Linf(eps=0.2, clip=(0.0, 1.0))
    more = [{"restarts": 3}] + ([{"targets": 4}, {"restarts": 2, "targets": 2}] if name != "rp:pgd" else [])
    # Each keeps the best by its own loss.
    single, found = (
        [r.loss if name == "rp:pgd" else reached(model, x, y, r) for r in results]
        for results in (
            [attack(name)(model, x, y, ball, seed=0)],
            [attack(name, **parameters)(model, x, y, ball, seed=0) for parameters in more],
        )
    )
    for values in found:
        assert (values >= single[0] - 1e-6).all()
        assert (values > single[0] + 1e-6).any()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_model_without_gradients_is_refused(case: tuple[nn.Module, Tensor, Tensor], name: str) -> None:
    model, x, y = case

    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.detach()).detach()

    with pytest.raises(rp.ArgumentError, match="not differentiable"):
        attack(name)(Detached(), x, y, rp.Linf(eps=0.1, clip=(0.0, 1.0)), seed=0)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("rp:pgd", {"steps": 0}), ("rp:pgd", {"step_size": -1.0}), ("rp:pgd", {"relative_step": 1.0, "step_size": 1.0}),
     ("rp:pgd", {"restarts": 2, "start": "none"}), ("rp:pgd", {"restarts": 2, "best": False}),
     ("rp:pgd", {"start": "x"}), ("rp:pgd", {"loss": "ce"}), ("rp:fgsm", {"loss": "ce"}),
     ("rp:apgd", {"targets": -1}), ("rp:apgd", {"loss": "ce"}), ("rp:apgd", {"steps": 1.5}),
     ("rp:margin-pgd", {"restarts": 0}), ("rp:margin-pgd", {"steps": True})],
)  # fmt: skip
def test_unusable_parameters_are_refused(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(rp.ArgumentError, match=next(iter(parameters))):
        rp.attack(name, **parameters)
