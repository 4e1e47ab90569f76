"""Batch normalisation under the mixed loss: the statistics of the clean batch, for attacks and for bounds."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from support.by_hand import BALL, adversarial, fixed, hand_ibp, mixed_ibp, network, samples
from torch import Tensor, nn

import robust_plugins as rp


@pytest.mark.parametrize("worst", ["art:fgsm", "interval:ibp"])
def test_batch_norm_sees_clean_inputs_alone(worst: str) -> None:
    model, (x, y) = network(normalise=True), samples()
    model.train()
    alone = copy.deepcopy(model)
    loss = rp.MixedLoss(worst=worst, gamma=0.0, ball=BALL, schedule=fixed())
    reference = copy.deepcopy(model)
    value = loss(model, x, y)
    alone(x)
    for buffer, expected in zip(model.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected)
    assert all(module.training for module in model.modules())
    if worst == "art:fgsm":
        # The attack comes after the forward pass on the clean inputs, which has moved the running statistics.
        x_adv = adversarial("art:fgsm", alone, x, y, BALL)
        h = reference[0](x)
        mean, variance = h.mean(0), h.var(0, correction=0)
        z = (reference[0](x_adv) - mean) / (variance + 1e-5).sqrt()
        expected = F.cross_entropy(reference[3](reference[2](z)), y)
        assert value.item() == pytest.approx(expected.item())
        value.backward()
        expected.backward()
        torch.testing.assert_close(model[0].weight.grad, reference[0].weight.grad)


def _folded(model: nn.Sequential, mean: Tensor, variance: Tensor) -> nn.Sequential:
    """A network with batch norm after the first layer as one without, its weights functions of the first's."""
    norm = model[1]
    scale = norm.weight / (variance + norm.eps).sqrt()
    folded = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    for layer in (folded[0], folded[2]):
        del layer.weight, layer.bias
    folded[0].weight = model[0].weight * scale.unsqueeze(1)
    folded[0].bias = (model[0].bias - mean) * scale + norm.bias
    folded[2].weight, folded[2].bias = model[3].weight, model[3].bias
    return folded


@pytest.mark.parametrize("worst", ["interval:ibp", "interval:crown-ibp", "lirpa:ibp", "lirpa:crown-ibp"])
def test_bounds_use_the_statistics_of_the_clean_batch(worst: str) -> None:
    model, (x, y) = network(normalise=True), samples()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-0.5, 0.5)
    point = mixed_ibp(worst=worst, gamma=0.0, ball=rp.Linf(eps=0.0, clip=(0, 1)))
    terms = point(model, x, y).terms
    assert terms.worst.item() == pytest.approx(terms.clean.item(), rel=1e-6)
    value = mixed_ibp(worst=worst, gamma=0.0)(model, x, y)
    h = model[0](x)
    folded = _folded(model, h.mean(0), h.var(0, correction=0))
    if "crown" in worst:
        assert value.item() > terms.clean.item()
    else:
        margins = hand_ibp(folded, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), y)
        expected = F.cross_entropy(-margins, y)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        if worst.startswith("interval"):  # gradients flow through the statistics, too
            slopes = torch.autograd.grad(value, list(model.parameters()))
            torch.testing.assert_close(slopes, torch.autograd.grad(expected, list(model.parameters())))
    buffers = dict(model.named_buffers())
    assert not any(b.requires_grad for b in buffers.values())
    assert int(buffers["1.num_batches_tracked"]) == 2  # once for each value of a loss


def test_a_batch_norm_used_twice() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(self.first(x)).relu()
            return self.last(self.norm(self.first(h)).relu())

    model, (x, y) = Twice().double(), samples()
    at_clean = rp.MixedLoss(worst="art:fgsm", gamma=0.0, ball=rp.Linf(eps=0.0, clip=(0, 1)))
    terms = at_clean(model, x, y).terms
    assert terms.worst.item() == pytest.approx(terms.clean.item())
    with pytest.raises(rp.UnsupportedModelError, match="used 2 times"):
        mixed_ibp()(model, x, y)
    assert torch.isfinite(mixed_ibp()(model.eval(), x, y))


def test_batch_norm_folds_into_the_hand_written_bounds() -> None:
    model, (x, y) = network(normalise=True).eval(), samples()
    value = mixed_ibp(gamma=0.0)(model, x, y)
    norm = model[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Sequential(copy.deepcopy(model[0]), copy.deepcopy(model[3]))
    with torch.no_grad():
        folded[0].weight.mul_(scale.unsqueeze(1))
        folded[0].bias.sub_(norm.running_mean).mul_(scale).add_(norm.bias)
    margins = hand_ibp(folded, (x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1), y)
    assert value.item() == pytest.approx(F.cross_entropy(-margins, y).item())
