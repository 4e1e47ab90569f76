"""What auto_LiRPA cannot bound is named; what is our own fault, or the machine's, is not blamed on it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.bounds_checker import sound
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import CROWN, CROWNIBP, IBP, AlphaCROWN, certifiers, compat

BALL = rp.Linf(eps=0.05, clip=None)
X = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
CERTIFIERS = [IBP(), CROWNIBP(), CROWN(), AlphaCROWN(steps=2)]
LEGACY = compat.load().legacy


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
        pytest.param(nn.ELU(), CERTIFIERS, marks=pytest.mark.slow),
        pytest.param(nn.Hardtanh(), CERTIFIERS, marks=pytest.mark.slow),
        (nn.PReLU(), CERTIFIERS),
        pytest.param(nn.GELU(), CERTIFIERS, marks=pytest.mark.slow),
        (nn.LogSoftmax(1), CERTIFIERS),
        (nn.Conv2d(2, 2, 3, padding="same"), CERTIFIERS),
        (nn.MaxPool2d(3, 2), CERTIFIERS[1:]),
        (nn.MaxPool2d(2), CERTIFIERS[3:]),
        (nn.Softmax(1), CERTIFIERS[1:] if LEGACY else []),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_the_layer_is_named(layer: nn.Module, certifiers: list[rp.Certifier]) -> None:
    model = Features(layer)
    y = model(X).argmax(1)
    name = rf"{type(layer).__name__} \(module 'features\.2'\)"
    for certifier in CERTIFIERS:
        if certifier not in certifiers:
            assert sound(model, X, BALL, certifier.bounds(model, X, BALL), samples=20)
    for certifier in certifiers:
        for _ in range(2):  # the second from memory
            with pytest.raises(rp.UnsupportedModelError, match=name) as caught:
                certifier.bounds(model, X, BALL)
            refused = "is unsound there" in str(caught.value)  # by our table, not by the backend
            assert refused or caught.value.__cause__ is not None
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


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: object) -> None:
            raise RuntimeError("one of a kind")

    with pytest.raises(rp.UnsupportedModelError, match="one of a kind"):
        IBP().bounds(nn.Sequential(nn.Flatten(), Stubborn(128, 3)), X, BALL)


def test_our_own_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(certifiers, "perturbed", broken)
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


class Reading(nn.Module):
    """A layer, and a function of its input and its logits that may read values."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.net(x))


READING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "branch": lambda x, z: z.flip(1) if x.sum() > 300 else z,
    "float": lambda x, z: z * float(x.detach().max()),
    "item": lambda x, z: z - z.detach()[0, 0].item(),
    "index": lambda x, z: z + z[:, int(z.detach().sum() > 1000)].unsqueeze(1),
    "numpy": lambda x, z: z * torch.from_numpy(x.detach().numpy().mean(keepdims=True).reshape(1)),
    "list": lambda x, z: z * x.detach().flatten()[:3].tolist()[0],
    "in place": lambda x, z: z * float(torch.zeros(3).copy_(z.detach()[0]).sum()),
    "shape of a mask": lambda x, z: z if len(x[x > 0.5]) > 5 else -z,
}


@pytest.mark.parametrize("name", READING)
def test_code_that_reads_values_of_the_input_is_refused_with_its_line(name: str) -> None:
    model = Reading(READING[name])
    for certifier in (IBP(), CROWN()):
        with pytest.raises(rp.UnsupportedModelError, match=rf"reads values .*\"{name}\": lambda.*line \d+\)"):
            certifier.bounds(model, X, BALL)


def test_a_branch_that_no_sample_shows_is_refused() -> None:
    """Traced, the model is certified at 0 with radius 1; at 1 it answers something else."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(1, 2)
            with torch.no_grad():
                self.last.weight.copy_(torch.tensor([[1.0], [0.0]]))
                self.last.bias.copy_(torch.tensor([1.5, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            z = self.last(x)
            return z.flip(1) if x.detach().sum() > 0.9 else z

    model, x = Branch(), torch.zeros(1, 1)
    for certifier in CERTIFIERS:
        certificate = certifier(model, x, model(x).argmax(1), rp.Linf(eps=1.0, clip=None))
        assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
        assert "z.flip(1) if x.detach().sum() > 0.9" in certificate.messages[0]


def test_branches_on_shapes_weights_and_constants_are_supported() -> None:
    class Allowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.std = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), torch.tensor([0.5, 0.25])

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 2 or len(x) > 100 or (self.std == 0).any():
                raise ValueError("two channels, please")
            size = int(x.shape[2] * x.shape[3])
            z = self.net(x / self.std.view(-1, 1, 1)) * (size / 64)
            return z * float(self.net[1].bias.detach().abs().max() + 1)

    model = Allowed()
    for certifier in CERTIFIERS:
        found, logits = certifier.bounds(model, X, BALL).detach(), model(X).detach()
        assert ((found.lower <= logits) & (logits <= found.upper)).all()


def test_a_failure_on_one_ball_is_not_remembered() -> None:
    class Reciprocal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(1 / x)

    model, x = Reciprocal(), torch.full((2, 3), 2.0)
    before = IBP().bounds(model, x, BALL)
    with pytest.raises(rp.UnsupportedModelError):
        IBP().bounds(model, x, rp.Linf(eps=3.0, clip=None))  # spans the pole
    assert torch.equal(IBP().bounds(model, x, BALL).lower, before.lower)


@pytest.mark.usefixtures("unchecked")
def test_a_wrong_specification_is_not_blamed_on_the_model() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.ReLU(), nn.Linear(3, 3))
    for certifier in CERTIFIERS:
        wrong = torch.rand(3, 2, 3).double()
        with pytest.raises(rp.ArgumentError, match="spec"):
            certifier.bounds(model, X, BALL, wrong)
        with contextlib.suppress(rp.UnsupportedModelError, rp.ArgumentError):
            certifier.propagate(model, X, BALL, wrong)  # past the check
        assert certifier.bounds(model, X, BALL, torch.rand(3, 2, 3)).shape == (3, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("steps", [2.5, True, 0])
def test_steps_are_an_integer(steps: object) -> None:
    with pytest.raises(rp.ArgumentError, match="steps"):
        AlphaCROWN(steps=steps)  # type: ignore[arg-type]


def test_logits_that_do_not_depend_on_the_input_are_unsupported() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), 3)

    for certifier in CERTIFIERS:
        certificate = certifier(Constant(), X, torch.zeros(3, dtype=torch.long), BALL)
        assert set(certificate.verdicts) == {rp.Verdict.UNSUPPORTED}
        assert "do not depend on its input" in certificate.messages[0]


class OneSize(nn.Module):
    """Runs with `size` samples alone, as a program that was exported for them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net, self.size = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)), size

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == self.size, "Guard failed"
        return self.net(x)


@pytest.mark.parametrize("size", [2, 3])
def test_a_model_of_one_batch_size_is_bounded_with_it_and_unsupported_otherwise(size: int) -> None:
    model = OneSize(size)
    x = X[:1].repeat(size, 1, 1, 1)
    for certifier in CERTIFIERS:
        found = certifier.propagate(model, x, BALL, None)
        assert torch.allclose(found.lower, certifier.propagate(model.net, x, BALL, None).lower, atol=1e-5)
        with pytest.raises(rp.UnsupportedModelError, match=r"Guard failed.*dynamic batch size"):
            certifier.propagate(model, X[:1], BALL, None)
