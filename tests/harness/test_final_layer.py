"""Which last layers are left out, however they are written, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import decided

X = torch.rand(6, 5, generator=torch.Generator().manual_seed(0))


class Ending(nn.Module):
    """Three or one outputs, and what comes after them."""

    def __init__(self, outputs: int, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.last = nn.Linear(5, outputs), last
        with torch.no_grad():
            self.body.weight.copy_(torch.linspace(-1, 1, 5 * outputs).view(outputs, 5).sin())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x))


@pytest.mark.parametrize(
    ("outputs", "last"),
    [
        (1, lambda z: torch.sigmoid(z).squeeze(1)),
        (1, lambda z: z.sigmoid_().flatten()),
        (1, lambda z: torch.special.expit(z)[:, 0]),
        (1, nn.Sequential(nn.Sigmoid(), nn.Flatten(0), nn.Identity())),
        (3, lambda z: torch.special.softmax(z, 1)),
        (3, lambda z: torch.special.log_softmax(z, 1).view(-1, 3)),
    ],
    ids=["squeezed", "in place", "a column", "flattened by a module", "special", "viewed"],
)
def test_a_monotone_last_layer_is_found_however_it_is_written(outputs: int, last: Callable[..., Tensor]) -> None:
    model = Ending(outputs, last).eval()
    with torch.no_grad():
        found, _ = decided(model, X)
        for x in (X, X + 0.3):
            z = model.body(x)
            torch.testing.assert_close(found(x), torch.cat((-z, z), 1) / 2 if outputs == 1 else z)


@pytest.mark.parametrize("last", [nn.Sequential(nn.Softmax(1), nn.Identity()), nn.Softmax(1)])
def test_nothing_stays_behind_the_linear_layer(last: nn.Module) -> None:
    """Bounds of margins are tight where the last layer is linear."""
    found, _ = decided(Ending(3, last).eval(), X)
    assert [node.op for node in found.graph.nodes] == ["placeholder", "call_module", "output"]


SIGMOIDS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "a quotient": (lambda z: 1 / (1 + torch.exp(-z)), 1),
    "a quotient of two": (lambda z: (z.exp() / (1 + z.exp())).squeeze(1), 1),
    "a reciprocal": (lambda z: (1 + (-z).exp()).reciprocal(), 1),
    "clamped": (lambda z: z.sigmoid().clamp(1e-4, 1 - 1e-4), 1),
    "a tanh": (lambda z: 0.5 * (1 + torch.tanh(z)), 1),
    "by softplus": (lambda z: torch.exp(-F.softplus(-z)), 1),
    "the other class": (lambda z: 1 - torch.sigmoid(z), -1),
    "hard": (lambda z: F.hardsigmoid(z)[:, 0], 1),
}


@pytest.mark.parametrize("name", SIGMOIDS)
def test_a_sigmoid_is_found_by_what_it_computes(name: str) -> None:
    last, sign = SIGMOIDS[name]
    model = Ending(1, last).eval()
    with torch.no_grad():
        found, _ = decided(model, X)
        for x in (X, X + 0.3, X - 5):
            z = sign * model.body(x)
            torch.testing.assert_close(found(x), torch.cat((-z, z), 1) / 2)
            assert torch.equal(found(x).argmax(1) == 1, model(x).flatten() > 0.5)


def test_a_shift_and_a_scale_inside_belong_to_the_logit() -> None:
    model = Ending(1, lambda z: 1 / (1 + torch.exp(-(z - 0.2) / 3))).eval()
    with torch.no_grad():
        z = (model.body(X) - 0.2) / 3
        torch.testing.assert_close(decided(model, X)[1], torch.cat((-z, z), 1) / 2)


def test_values_changed_in_place_before_the_logit_stay_changed() -> None:
    def last(z: Tensor) -> Tensor:
        z.mul_(3)
        return 1 / (1 + torch.exp(-z))

    model = Ending(1, last).eval()
    with torch.no_grad():
        z = 3 * model.body(X)
        torch.testing.assert_close(decided(model, X)[1], torch.cat((-z, z), 1) / 2)


UNREADABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "one of several": lambda z: F.softmax(torch.stack((z[:, 0] + 30, z[:, 1] + 15), 1), 1)[:, 0],
    "not monotone": lambda z: torch.exp(-(z[:, :1] ** 2)),
    "decides elsewhere": lambda z: torch.sigmoid(z[:, :1]).pow(3),
    "by a branch": lambda z: 1 / (1 + torch.exp(-z[:, :1])) if float(z.sum()) < 1e9 else z[:, :1],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_probabilities_without_a_logit_are_refused(name: str) -> None:
    with torch.no_grad(), pytest.raises(ArgumentError, match="no sigmoid at its end"):
        decided(Ending(3, UNREADABLE[name]).eval(), X)


def test_what_the_refusal_hints_at_is_taken() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = torch.exp(-(x[:, :1] ** 2))
            return torch.cat((-z, z), 1) / 2

    with torch.no_grad():
        assert bool((decided(Two(), X)[1].argmax(1) == 1).all())


def test_small_logits_are_no_probabilities() -> None:
    model = Ending(1, lambda z: 0.5 + 0.1 * z).eval()
    with torch.no_grad():
        z = model(X)
        assert bool(((z >= 0) & (z <= 1)).all())
        torch.testing.assert_close(decided(model, X)[1], torch.cat((-z, z), 1) / 2)
