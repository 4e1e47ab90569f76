"""What a rule refuses while bounds are computed is said of the layer, by its path in the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import robust_plugins as rp


class Block(nn.Module):
    """A function of a linear layer's output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


class Deep(nn.Module):
    """The block in a list, between two linear layers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Linear(4, 4), nn.ModuleList([nn.Identity(), block]), nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[1](self.stem(x)))


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "truediv": lambda h: 1 / h,
    "pow": lambda h: h**1.5,
    "softmax": lambda h: h.softmax(0),
}
LAYERS: list[nn.Module] = [nn.Softplus(beta=-1), nn.BatchNorm1d(4, track_running_stats=False), nn.Softmax(0)]
X, BALL = torch.linspace(-1, 1, 8).view(2, 4), rp.Linf(eps=0.5, clip=None)


@pytest.mark.parametrize("name", ["interval:ibp", "interval:crown-ibp", "interval:crown", "interval:alpha-crown"])
def test_refusals_of_bounds(name: str) -> None:
    for function, call in CALLS.items():
        with pytest.raises(rp.UnsupportedModelError, match=rf"^{function} in blocks\.1 \(Block\): .+"):
            rp.certifier(name).bounds(Deep(Block(call)), X, BALL)
    for layer in LAYERS:
        place = rf"^layer 'blocks\.1' \({type(layer).__name__}\): .+"
        with pytest.raises(rp.UnsupportedModelError, match=place):
            rp.certifier(name).bounds(Deep(layer), X, BALL)


@pytest.mark.parametrize("name", ["interval:ibp", "interval:crown", "interval:relaxed"])
def test_refusals_of_bounds_on_gradients(name: str) -> None:
    """The function itself has bounds, its slope at the border has none."""
    model = Deep(Block(lambda h: h.relu().sqrt()))
    rp.certifier("interval:crown").bounds(model, X, BALL)
    with pytest.raises(rp.UnsupportedModelError, match=r"^sqrt in blocks\.1 \(Block\): .+"):
        rp.explanation_certifier(name).bounds(model, X, torch.tensor([0, 1]), BALL, of="logit")


class Transformed(nn.Module):
    """Samples the picture at places that it computes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.head = nn.Linear(4, 6), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        picture = x.view(-1, 1, 2, 2)
        grid = nn.functional.affine_grid(self.place(x).view(-1, 2, 3), picture.size(), align_corners=False)
        return self.head(nn.functional.grid_sample(picture, grid, align_corners=False).flatten(1))


def test_a_function_without_a_rule_is_named_though_it_is_given_the_batch_size() -> None:
    with pytest.raises(rp.UnsupportedModelError, match=r"^affine_grid in the model .* has no interval rule"):
        rp.certifier("interval:ibp").bounds(Transformed(), X, BALL)
