"""The public call of an attack: what it recomputes and judges, whatever a backend returns."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support.toys import SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing.networks import mlp_case

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Returns(rp.Attack):
    """Returns what it is told to."""

    value: object = None

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        return self.value(x) if callable(self.value) else self.value  # type: ignore[return-value]


class TestAttack:
    def test_what_leaves_the_ball_is_projected(self) -> None:
        case = mlp_case()
        result = Returns(value=lambda x: x + 5)(case.model, case.x, case.y, BALL)
        assert BALL.contains(result.x_adv, case.x, tolerance=0).all()

    def test_nan_counts_as_nothing_found(self) -> None:
        case = mlp_case()
        result = Returns(value=lambda x: x * torch.nan)(case.model, case.x, case.y, BALL)
        assert torch.equal(result.x_adv, case.x)
        assert result.success.tolist() == [False] * 5 + [True]

    def test_a_wrong_shape_is_a_broken_contract(self, unchecked) -> None:
        case = mlp_case()
        for value in (lambda x: x[:, :2], None, lambda x: x.tolist()):
            with pytest.raises(rp.ComponentError, match="perturb returned"):
                Returns(value=value)(case.model, case.x, case.y, BALL)

    def test_the_worse_of_candidate_and_input_is_kept(self) -> None:
        """Moving along the gradient raises the loss, so moving against it must be discarded."""
        case = mlp_case()

        @dataclass(frozen=True, kw_only=True)
        class Backwards(SignStep):
            def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
                return super().perturb(model, x, y, ball, targeted=not targeted)

        result = Backwards()(case.model, case.x, case.y, rp.Linf(eps=0.01, clip=(0.0, 1.0)))
        assert torch.equal(result.x_adv, case.x)
        assert result.distance.abs().sum() == 0

    def test_random_targets_are_uniform_over_the_wrong_classes(self) -> None:
        model, x = nn.Linear(2, 4), torch.rand(6000, 2)
        y = torch.arange(6000) % 4
        target = Returns(value=lambda x: x)(model, x, y, BALL, target="random", seed=1).target
        assert (target != y).all()
        for label in range(4):
            counts = target[y == label].bincount(minlength=4)
            assert counts[label] == 0
            assert (counts[torch.arange(4) != label] - 500).abs().max() < 80  # four standard deviations

    def test_the_least_likely_class_is_never_the_label(self) -> None:
        model, x = nn.Linear(2, 4), torch.rand(50, 2)
        y = model(x).argmin(1)
        target = Returns(value=lambda x: x)(model, x, y, BALL, target="least_likely").target
        second = model(x).argsort(1)[:, 1]
        assert torch.equal(target, second)

    def test_a_target_must_be_another_class(self, unchecked) -> None:
        case = mlp_case()
        with pytest.raises(rp.ArgumentError, match="equal to y"):
            SignStep()(case.model, case.x, case.y, BALL, target=case.y)
        with pytest.raises(rp.ArgumentError, match="'random' or 'least_likely'"):
            SignStep()(case.model, case.x, case.y, BALL, target="worst")

    def test_targets_come_as_labels_do(self) -> None:
        case = mlp_case()
        target = (case.y + 1) % 3
        wanted = SignStep()(case.model, case.x, case.y, BALL, target=target)
        for given in (target.numpy(), target.tolist(), target.unsqueeze(1), target.to(torch.uint8)):
            result = SignStep()(case.model, case.x, case.y, BALL, target=given)
            assert torch.equal(result.target, target)
            assert torch.equal(result.x_adv, wanted.x_adv)

    def test_an_inference_tensor_is_accepted(self) -> None:
        case = mlp_case()
        with torch.inference_mode():
            x = case.x.clone()
            result = SignStep()(case.model, x, case.y, BALL, seed=0)
        assert torch.equal(result.x_adv, SignStep()(case.model, case.x, case.y, BALL, seed=0).x_adv)

    def test_a_sweep_repeats_single_calls(self) -> None:
        case = mlp_case()
        results = SignStep()(case.model, case.x, case.y, BALL, eps=[0.05, 0.1], seed=0)
        alone = SignStep()(case.model, case.x, case.y, BALL, seed=0)
        assert torch.equal(results[1].x_adv, alone.x_adv)


def test_nan_logits_are_no_success() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x[:, 0], -x[:, 0]), 1) / (x[:, :1] <= 0.5) * (x[:, :1] <= 0.5)

    x = torch.tensor([[0.45]])
    result = Returns(value=lambda x: x + 0.1)(Breaks(), x, torch.tensor([0]), BALL)
    assert not result.success.item()
    assert result.logits.isfinite().all()


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_models_are_attacked() -> None:
    torch.manual_seed(0)
    model, x = _Recurrent(), torch.rand(3, 5, 3)
    result = SignStep()(model, x, torch.tensor([0, 1, 2]), BALL, seed=0)
    assert (result.distance > 0).all()
    assert torch.backends.cudnn.enabled


def test_rows_that_depend_on_one_another_are_judged_together() -> None:
    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            z = super().forward(x)
            return z - z.mean(0)

    torch.manual_seed(0)
    model, x = Centred(4, 3), torch.rand(40, 4)
    y = model(x).argmax(1)

    up = SignStep().perturb(model, x, y, BALL, targeted=False)

    def half(x: Tensor) -> Tensor:  # of the last 20 the input itself is kept, for there the loss sinks
        return torch.cat((up[:20], 2 * x[20:] - up[20:]))

    result = Returns(value=half)(model, x, y, rp.Linf(eps=0.3, clip=(0.0, 1.0)))
    assert torch.equal(result.logits, model(result.x_adv))
    assert torch.equal(result.success, result.logits.argmax(1) != y)
    assert "as a whole" in result.notes[0]


@pytest.mark.parametrize("name", ["art:mim", "art:deepfool", "art:cw-l2", "art:apgd-ce", "rp:pgd"])
def test_a_model_without_gradients_is_refused_by_one_sentence(name: str) -> None:
    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model, x = Detached(4, 3), torch.rand(3, 4)
    norm = rp.L2 if name in ("art:deepfool", "art:cw-l2") else rp.Linf
    with pytest.raises(rp.ArgumentError, match="not differentiable in its input"):
        rp.attack(name)(model, x, model(x).argmax(1), norm(eps=0.1, clip=(0.0, 1.0)))


def test_an_attack_may_view_its_inputs_as_rows() -> None:
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), torch.rand(4, 3, 2).transpose(1, 2)
    result = Returns(value=lambda x: (x.view(len(x), -1) + 0.05).view_as(x))(model, x, model(x).argmax(1), BALL)
    assert result.x_adv.shape == (4, 2, 3)
