"""Arguments of the public calls, and what a plugin may not do to them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.harness.component import chunks
from robust_plugins.testing.networks import mlp_case

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Meddles(SignStep):
    """Changes whatever it gets hold of."""

    what: str = ""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        if self.what == "x":
            x.add_(1)
        elif self.what == "y":
            y.zero_()
        elif self.what == "hook":
            model.register_forward_hook(lambda module, args, out: -out)
            return x
        elif self.what == "dtype":
            torch.set_default_dtype(torch.float64)
        elif self.what == "weights":
            with torch.no_grad():
                next(model.parameters()).neg_()
        return super().perturb(model, x, y, ball, targeted=targeted)


@pytest.mark.parametrize("what", ["x", "y", "hook", "dtype"])
def test_what_a_plugin_does_to_its_arguments_reaches_nobody(what) -> None:
    case = mlp_case()
    x, y = case.x.clone(), case.y.clone()
    result = Meddles(what=what)(case.model, case.x, case.y, BALL, seed=0)
    assert torch.equal(case.x, x)
    assert torch.equal(case.y, y)
    assert torch.get_default_dtype() == torch.float32
    assert not case.model._forward_hooks
    assert BALL.contains(result.x_adv, x, tolerance=0).all()
    assert torch.equal(result.success, case.model(result.x_adv).argmax(1) != y) or what == "hook"


def test_changed_weights_are_an_error() -> None:
    case = mlp_case()
    with pytest.raises(rp.ComponentError, match=r"changed the model \(weights of body.0.weight\)"):
        Meddles(what="weights")(case.model, case.x, case.y, BALL, seed=0)


def test_labels_of_one_byte_are_labels(unchecked) -> None:
    case = mlp_case()
    assert (
        Boxes()(case.model, case.x, case.y.to(torch.uint8), BALL).verdicts
        == Boxes()(case.model, case.x, case.y, BALL).verdicts
    )


class _Output(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.change = change

    def forward(self, x: Tensor):
        return self.change(self.linear(x))


X, Y, MODEL = torch.rand(2, 3), torch.tensor([0, 1]), nn.Linear(3, 4)


@pytest.mark.parametrize("component", [SignStep(), Boxes()], ids=["attack", "certifier"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MODEL, X, torch.tensor([0, 4]), BALL), r"`y` is between 0 and 4; accepted: class indices from 0 to 3"),
        ((MODEL, X, torch.tensor([0.0, 1.0]), BALL), r"`y` is \(2,\) torch.float32; accepted: an integer tensor"),
        ((MODEL, X, torch.eye(4).long()[:2], BALL), r"argmax\(1\)"),
        ((MODEL, X + 1, Y, BALL), r"`x` is between .*clip range \(0.0, 1.0\)"),
        ((MODEL, X * torch.nan, Y, BALL), r"`x` is not finite"),
        ((MODEL, X.double(), Y, BALL), r"torch.float64 on cpu; accepted: the model's dtype"),
        ((nn.Linear(3, 4).half(), X, Y, BALL), r"`model` is in torch.float16; .* model.float\(\)"),
        ((MODEL, X[0], Y, BALL), r"unsqueeze"),
        ((MODEL, X.half(), Y, BALL), r"torch.float16; accepted: a batch .* in float32 or float64"),
        ((MODEL, X.tolist(), Y, BALL), r"`x` is list; accepted: a torch.Tensor"),
        ((MODEL, X, Y, 0.1), r"`ball` is 0.1; accepted: rp.Linf"),
        ((lambda x: x, X, Y, BALL), r"`model` is function; accepted: a torch.nn.Module"),
        ((_Output(lambda z: (z, z)), X, Y, BALL), r"`model` is returning a tuple"),
        ((_Output(lambda z: z.unsqueeze(2)), X, Y, BALL), r"at least two classes"),
    ],
)
def test_wrong_arguments_are_named(component, arguments, message, unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=message):
        component(*arguments)


def test_a_wrong_batch_size_is_named() -> None:
    with pytest.raises(rp.ArgumentError, match="`batch_size` is 0"):
        SignStep(batch_size=0)


def test_a_fractional_batch_size_is_named(unchecked) -> None:
    with pytest.raises(rp.ArgumentError, match=r"`batch_size` is 2\.5"):
        SignStep(batch_size=2.5)


def test_chunks_cover_the_batch() -> None:
    assert [list(range(10))[c] for c in chunks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(chunks(0, None)) == []
    assert list(chunks(3, None)) == [slice(0, 3)]
