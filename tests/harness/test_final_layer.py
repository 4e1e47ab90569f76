"""Which last layers are left out, however they are written, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def test_one_probability_of_several_is_no_sigmoid() -> None:
    """Where both are nearly 1 they look the same, and their logits do not change sign together."""
    model = Ending(3, lambda z: F.softmax(torch.stack((z[:, 0] + 30, z[:, 1] + 15), 1), 1)[:, 0]).eval()
    with torch.no_grad():
        torch.testing.assert_close(decided(model, X)[1][:, 1], model(X) / 2)
