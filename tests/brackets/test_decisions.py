"""The bracket of one model on one batch, and the contradictions in it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from support.toys import Boxes, Plugin, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.comparison import comparison_table
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import cnn_case, linear_case, mlp_case


@pytest.fixture(autouse=True)
def toys(fresh_registry) -> None:  # noqa: F811
    rp.register(Plugin(), "toys")


@dataclass(frozen=True, kw_only=True)
class Raises(SignStep):
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        raise MemoryError("too large")


@dataclass(frozen=True, kw_only=True)
class ExactMargins(rp.Certifier):
    """Exact bounds of a linear model's margins, scaled by a factor that plants a fault where it is below one."""

    factor: float = 1.0

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        box, layer = ball.box(x), model[0]
        rows = torch.eye(4).expand(len(x), -1, -1) if spec is None else spec
        weight = rows @ layer.weight
        center = (rows @ model(box.center).unsqueeze(2)).squeeze(2)
        radius = self.factor * (weight.abs() @ box.radius.unsqueeze(2)).squeeze(2)
        return rp.Interval(center - radius, center + radius)


def test_the_bracket_holds_the_components_shares() -> None:
    case = mlp_case(batch=40)
    table = rp.compare(case.model, case.x, case.y, case.ball, ["toy:sign-step", "toy:boxes"], seed=0)
    attack = SignStep()(case.model, case.x, case.y, case.ball, seed=0)
    certificate = Boxes()(case.model, case.x, case.y, case.ball)
    assert table.clean == pytest.approx(39 / 40)
    assert table["toy:sign-step"].accuracy == pytest.approx(1 - attack.success.float().mean().item())
    assert table["toy:boxes"].accuracy == pytest.approx(certificate.certified.float().mean().item())
    assert table.bracket == rp.Bracket(table["toy:sign-step"].accuracy, table["toy:boxes"].accuracy)
    assert table.bracket.certified <= table.bracket.empirical <= table.clean
    assert table.crossings == ()
    assert json.loads(json.dumps(table.to_dict()))["bracket"] == table.bracket.to_dict()
    with pytest.raises(KeyError):
        table["art:pgd"]


def test_a_wrong_certificate_is_a_contradiction() -> None:
    """On a linear model the bounds are exact and one step along the sign reaches them: any tighter claim crosses."""
    case = linear_case()
    table = rp.compare(
        case.model, case.x, case.y, case.ball, [SignStep(), ExactMargins(), ExactMargins(factor=0.99)], seed=0
    )
    assert table.crossings
    assert {c.certifier for c in table.crossings} == {str(ExactMargins(factor=0.99))}
    assert all(c.achieved < c.proved for c in table.crossings)
    assert "CONTRADICTION" in str(table)
    assert json.loads(json.dumps(table.to_dict()))["crossings"]


def test_a_component_that_raises_is_a_row() -> None:
    case = mlp_case()
    table = rp.compare(case.model, case.x, case.y, case.ball, [Raises(), "toy:boxes"], seed=0)
    failed, good = table.rows
    assert failed.accuracy is None
    assert failed.error.startswith("MemoryError: too large (in perturb, ")
    assert f"{__file__}:" in failed.error  # the file and the line of whose component it is
    assert isinstance(failed.exception, MemoryError)
    assert failed.exception.__traceback__ is not None
    assert good.accuracy is not None
    assert "MemoryError: too large" in str(table)
    assert table.bracket == rp.Bracket(None, good.accuracy)


def test_the_printed_table() -> None:
    case = cnn_case()
    comparisons = [
        rp.compare(case.model, case.x, case.y, rp.Linf(eps=e, clip=(0, 1)), ["toy:sign-step", "toy:boxes"], seed=0)
        for e in (0.01, 0.2)
    ]
    text = str(comparison_table(comparisons))
    lines = text.splitlines()
    assert lines[0].split() == ["accuracy", "of", "is", "Linf", "0.01", "Linf", "0.2"]
    assert lines[2].split()[:5] == ["the", "model", "clean", "0.750", "0.750"]
    assert lines[3].split()[:2] == ["toy:sign-step", "attacked"]
    assert lines[4].split()[:2] == ["toy:boxes", "certified"]
    assert str(comparisons[0]).startswith(str(comparison_table(comparisons[:1])))


def test_an_empty_batch_has_an_empty_bracket() -> None:
    case = mlp_case()
    table = rp.compare(case.model, case.x[:0], case.y[:0], case.ball, ["toy:sign-step", "toy:boxes"])
    assert table.bracket == rp.Bracket(None, None)
    assert table.clean is None
    assert "0.0" not in str(table).replace("Linf 0.08", "")
    assert "there is no sample" in str(table)


def test_progress_goes_to_standard_error(capsys) -> None:
    case = mlp_case()
    rp.compare(case.model, case.x, case.y, case.ball, ["toy:boxes"], progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "comparing: toy:boxes" in err


def test_wrong_arguments_are_named(unchecked) -> None:
    case = mlp_case()
    arguments = case.model, case.x, case.y, case.ball
    with pytest.raises(rp.UnknownNameError, match=r"unknown attack or certifier 'toy:box'. Did you mean 'toy:boxes'"):
        rp.compare(*arguments, ["toy:box"])
    with pytest.raises(rp.ArgumentError, match="each component once"):
        rp.compare(*arguments, ["toy:boxes", "toy:boxes"])
    with pytest.raises(rp.ArgumentError, match="registered names, attacks and certifiers"):
        rp.compare(*arguments, [torch.sin])
    with pytest.raises(rp.ArgumentError, match="clip range"):
        rp.compare(case.model, case.x + 1, case.y, case.ball, ["toy:boxes"])


def test_rounding_of_large_inputs_is_no_contradiction_and_a_wrong_bound_among_them_is() -> None:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)).eval()
    with torch.no_grad():  # inputs of 3000 whose sum cancels: rounding is all over the margins' fourth digits
        net[0].weight -= net[0].weight.mean(1, keepdim=True)
    x = torch.rand(16, 20) * 0.1 + 3000
    y = net(x).argmax(1)
    found = rp.compare(net, x, y, rp.Linf(eps=1e-3, clip=None), ["rp:margin-pgd", "interval:crown"], seed=0)
    assert not found.crossings

    line = nn.Sequential(nn.Linear(20, 4))
    with torch.no_grad():
        line[0].weight -= line[0].weight.mean(1, keepdim=True)
    y, ball = line(x).argmax(1), rp.Linf(eps=0.05, clip=None)
    for factor, crosses in ((1.0, False), (0.9, True)):
        components = ["rp:margin-pgd", ExactMargins(factor=factor)]
        assert bool(rp.compare(line, x, y, ball, components, seed=0).crossings) == crosses
