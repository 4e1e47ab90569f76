"""What auto_LiRPA cannot bound is named; what is our own fault, or the machine's, is not blamed on it."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.certifiers import CROWN, CROWNIBP, IBP, AlphaCROWN, lirpa

BALL = rp.Linf(eps=0.05, clip=None)
X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=2)]


class Features(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), layer, nn.Flatten())
        self.head = nn.Linear(self.features(X).shape[1], 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.mark.parametrize(
    ("layer", "certifiers"),
    [
        (nn.ELU(), CERTIFIERS),
        (nn.Hardtanh(), CERTIFIERS),
        (nn.PReLU(), CERTIFIERS),
        (nn.GELU(), CERTIFIERS),
        (nn.LogSoftmax(1), CERTIFIERS),
        (nn.Conv2d(2, 2, 3, padding="same"), CERTIFIERS),
        (nn.MaxPool2d(3, 2), CERTIFIERS[1:]),
        (nn.MaxPool2d(2), CERTIFIERS[3:]),
        (nn.Softmax(1), CERTIFIERS[1:]),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_layer_is_named(layer: nn.Module, certifiers: list[rp.Certifier]) -> None:
    model = Features(layer)
    y = model(X).argmax(1)
    name = rf"{type(layer).__name__} \(module 'features\.2'\)"
    for certifier in certifiers:
        for _ in range(2):  # the second from memory
            with pytest.raises(rp.UnsupportedModelError, match=name) as caught:
                certifier.bounds(model, X, BALL)
            assert caught.value.__cause__ is not None
        certificate = certifier(model, X, y, BALL)
        assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
        assert "features.2" in certificate.messages[0]


def test_a_called_function_is_named_by_its_operator() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(128, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.elu(self.first(x.flatten(1))))

    with pytest.raises(rp.UnsupportedModelError, match="operation Elu of Called"):
        IBP().bounds(Called(), X, BALL)


def test_a_branch_on_values_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            return z if float(x.sum()) < 100 else -z

    low = torch.full((2, 2, 8, 8), 0.3)
    with pytest.raises(rp.UnsupportedModelError, match="computes something else"):
        IBP().bounds(Branch(), low, BALL)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("one of a kind")

    with pytest.raises(rp.UnsupportedModelError, match="one of a kind"):
        IBP().bounds(nn.Sequential(nn.Flatten(), Stubborn(128, 3)), X, BALL)


def test_our_own_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(lirpa, "perturbed", broken)
    with pytest.raises(TypeError, match="ours"):
        IBP().bounds(nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), X, BALL)


def test_exhausted_memory_is_not_an_unsupported_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    IBP().bounds(model, X, BALL)

    def exhausted(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    operators = sys.modules["auto_LiRPA.operators.linear"]
    monkeypatch.setattr(operators.BoundLinear, "interval_propagate", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        IBP().bounds(model, X, BALL)


def test_torchscript_is_unsupported_and_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    x = torch.rand(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        script = torch.jit.script(model)
    certificate = rp.certifier("lirpa:ibp")(script, x, model(x).argmax(1), rp.Linf(eps=0.01, clip=None))
    assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
    assert "torch.export" in certificate.messages[0]
