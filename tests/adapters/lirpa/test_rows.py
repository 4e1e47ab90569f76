"""Models whose samples depend on each other are refused; the user's inputs are never overwritten."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, IBP, bounded
from robust_plugins.adapters.lirpa.rows import refuse_mixed

X = torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


class Middle(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.function = nn.Linear(5, 6), nn.Linear(6, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


MIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "length": lambda h: h / len(h),
    "mean": lambda h: h - h.mean(0),
    "softmax": lambda h: h.softmax(0),
    "a little": lambda h: h + 1e-5 * h.sum(0, keepdim=True),
    "very little": lambda h: h + 1e-30 * h.sum(0, keepdim=True),
    "in a branch": lambda h: h + F.relu(h.mean(0) - 30),
    "first sample": lambda h: h + h[:1],
    "earlier samples": lambda h: h.cumsum(0),
    "next sample": lambda h: h.roll(1, 0),
    "order": lambda h: h.flip(0),
    "length in a branch": lambda h: 2 * h if len(h) == 2 else h,
    "length of more than two": lambda h: h / 3 if len(h) > 4 else h,
}


@pytest.mark.parametrize("name", MIXED)
def test_samples_that_depend_on_each_other_are_refused(name: str) -> None:
    for n in (1, 4):
        for certifier in (IBP(), CROWN()):
            with pytest.raises(rp.UnsupportedModelError, match="depend on the other samples"):
                certifier.bounds(Middle(MIXED[name]), X[:n], BALL)


ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "along the features": lambda h: h - h.mean(1, keepdim=True),
    "there and back": lambda h: torch.cat((h, -h), 0).chunk(2, 0)[0],
    "length of one": lambda h: h.reshape(len(h), 6) * (len(h) / h.shape[0]),
}


@pytest.mark.parametrize("name", ALONE)
def test_samples_of_their_own_are_not(name: str) -> None:
    refuse_mixed(Middle(ALONE[name]), X)


def test_a_length_that_was_not_tried_is_looked_at_when_it_comes() -> None:
    model = Middle(lambda h: 2 * h if len(h) == 9 else h)
    IBP().bounds(model, X, BALL)
    with pytest.raises(rp.UnsupportedModelError):
        IBP().bounds(model, torch.rand(9, 5), BALL)


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": lambda x: F.leaky_relu_(x, 0.2),
    "product": lambda x: x.mul_(2),
    "shift": lambda x: x.sub_(0.3),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_inputs_are_not_overwritten(name: str) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(IN_PLACE[name](x))

    model, x = First(), X - 0.5
    before = x.clone()
    ball = rp.Linf(eps=0.1, clip=None)
    for certifier in (IBP(), CROWN()):
        for _ in range(2):
            try:
                bounds = certifier.bounds(model, x, ball)
            except rp.UnsupportedModelError:
                continue
            finally:
                assert torch.equal(x, before)
            for z in ball.sample(x, 100, torch.Generator().manual_seed(1), draw="corner"):
                assert bounds.contains(model(z.clone()), tolerance=1e-5).all()


def test_wrappers_that_the_public_call_makes_share_one_conversion() -> None:
    model = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Linear(5, 1))
    for _ in range(3):
        IBP().bounds(model, X, BALL)
    assert len(bounded._cache[model]) == 1
