"""The penalties against their formulas, and against the full Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian

import robust_plugins as rp
from robust_plugins.losses import HessianPenalty, L2Penalty
from robust_plugins.testing.networks import Case, mlp_case


def smooth_case() -> Case:
    return mlp_case(activation=nn.Tanh, normalised=False).to(torch.float64, "cpu")


def test_l2_is_the_squared_norm_of_the_gradient() -> None:
    case = smooth_case()
    z = case.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.model(z).gather(1, case.y.unsqueeze(1)).sum(), z)
    found = L2Penalty(alpha=0.5)(case.model, case.x, case.y)
    torch.testing.assert_close(found, 0.5 * gradient.square().sum(1).mean())
    found.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in case.model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("of", ["logit", "loss"])
def test_hessian_is_the_squared_frobenius_norm(of: str) -> None:
    case = smooth_case()

    def number(z: Tensor, y: Tensor) -> Tensor:
        logits = case.model(z)
        return logits[y] if of == "logit" else nn.functional.cross_entropy(logits, y)

    each = [hessian(lambda z, y=y: number(z, y), x) for x, y in zip(case.x, case.y, strict=True)]
    exact = torch.stack(each).square().sum((1, 2)).mean()
    torch.manual_seed(0)
    found = HessianPenalty(alpha=2.0, of=of, samples=500)(case.model, case.x, case.y)
    assert found.item() == pytest.approx(2 * exact.item(), rel=0.1)
    found.backward()
    assert case.model[0].weight.grad.abs().sum() > 0


def test_relu_has_the_hessian_of_its_surrogate() -> None:
    case = mlp_case(normalised=False)
    torch.manual_seed(0)
    found = HessianPenalty()(case.model, case.x, case.y)
    assert found > 0
    smooth = nn.Sequential(*(nn.Softplus(10.0) if isinstance(m, nn.ReLU) else m for m in case.model))
    torch.manual_seed(0)
    torch.testing.assert_close(HessianPenalty(beta=99.0)(smooth, case.x, case.y), found)


def test_a_linear_model_and_an_empty_batch_cost_nothing() -> None:
    model, x, y = nn.Linear(3, 2), torch.rand(4, 3), torch.tensor([0, 1, 0, 1])
    assert HessianPenalty()(model, x, y) == 0
    assert HessianPenalty()(model, x[:0], y[:0]) == L2Penalty()(model, x[:0], y[:0]) == 0


@pytest.mark.usefixtures("unchecked")
def test_wrong_parameters_are_named() -> None:
    for wrong in ({"alpha": -1.0}, {"beta": 0.0}, {"samples": 0}):
        with pytest.raises(rp.ArgumentError) as error:
            HessianPenalty(**wrong)
        assert error.value.argument == next(iter(wrong))
    with pytest.raises(rp.ArgumentError):
        L2Penalty(alpha=float("nan"))
