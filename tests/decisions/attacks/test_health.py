"""Reasons to doubt an attack's number, beside the number: in the table, in JSON and on the page."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from support.toys import SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.decisions.attacks import health as checks
from robust_plugins.testing.networks import Case, mlp_case

BALL = rp.Linf(eps=0.15, clip=(0, 1))


@dataclass(frozen=True, kw_only=True)
class Corners(rp.Attack):
    """Random corners, as many as are asked for."""

    black_box = True
    draws: int = 50

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        best = x
        for z in ball.sample(x, self.draws, draw="corner"):
            broken = (model(z).argmax(1) != y).view(-1, *[1] * (x.dim() - 1))
            best = torch.where(broken, z, best)
        return best


@dataclass(frozen=True, kw_only=True)
class Stands(rp.Attack):
    """The planted fault: it stays where it is, or with `worse` moves only where it has few steps."""

    steps: int = 40
    worse: bool = False

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        if self.worse and self.steps < 10:
            return SignStep().perturb(model, x, y, ball, targeted=targeted)
        return x


class Around(nn.Module):
    def __init__(self, body: nn.Module, how) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.body, x)


def _case() -> Case:
    return mlp_case(batch=80)


def _compared(how, components) -> rp.Comparison:
    case = _case()
    model = case.model if how is None else Around(case.model, how)
    return rp.compare(model, case.x, case.y, BALL, components, seed=0)


def test_healthy_attacks_have_no_remarks() -> None:
    table = _compared(None, ["rp:margin-pgd", "rp:auto"])
    assert [row.health for row in table.rows] == [(), ()]
    assert "doubtful" not in str(table)


def test_saturation_is_said_of_attacks_on_cross_entropy() -> None:
    table = _compared(lambda body, x: 1e5 * body(x), [SignStep(), "rp:margin-pgd", "rp:auto"])
    sign, of_sign = str(SignStep()), table.rows[0]
    assert any("saturates" in reason for reason in of_sign.health)
    assert table["rp:margin-pgd"].health == table["rp:auto"].health == ()
    assert of_sign.cell.endswith("(doubtful)")
    assert table["rp:auto"].accuracy < of_sign.accuracy
    assert f"{sign}: doubtful: cross-entropy saturates" in str(table)
    written = json.loads(json.dumps(table.to_dict()))["rows"]
    assert written[0]["health"] == list(of_sign.health)


def test_zero_gradients_are_said(tmp_path) -> None:
    table = _compared(lambda body, x: body((255 * x).round() / 255), ["rp:margin-pgd", Corners(), "rp:auto"])
    reasons = " ".join(table["rp:margin-pgd"].health)
    assert "gradients are zero at 16 of 16 samples; rp:auto passes them straight through" in reasons
    assert "without gradients, breaks" in reasons
    assert "every input" in reasons
    assert table.rows[1].health == table.rows[2].health == ()
    page = rp.write_report(tmp_path / "page.html", [table], title="t").read_text()
    assert "doubtful: gradients are zero" in page
    assert "(doubtful)" in page


def test_models_without_gradients() -> None:
    table = _compared(lambda body, x: body((255 * x).to(torch.uint8).to(x.dtype) / 255).detach(), [Stands(), Corners()])
    assert any("no gradient" in reason for reason in table.rows[0].health)


def test_noise_that_finds_more_is_said() -> None:
    table = _compared(None, [Stands(steps=1)])
    assert any("random corners of the ball break" in reason for reason in table.rows[0].health)


def test_success_that_does_not_rise_is_said() -> None:
    table = _compared(None, [Stands(), Stands(worse=True), "rp:margin-pgd"])
    assert any("every input" in reason for reason in table.rows[0].health)
    assert any("in 2 steps it breaks" in reason for reason in table.rows[1].health)
    assert table.rows[2].health == ()


def test_success_that_does_not_rise_with_the_radius_is_said() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Near(SignStep):
        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
            found = super().perturb(model, x, y, ball, targeted=targeted)
            return found if ball.largest < 0.2 else x

    from robust_plugins.brackets.comparison import conclusion

    case = _case()
    tables = [
        rp.compare(case.model, case.x, case.y, rp.Linf(eps=eps, clip=(0, 1)), [Near(), SignStep()], seed=0)
        for eps in (0.3, 0.15)
    ]
    text = conclusion(tables)
    assert "success does not rise with the radius" in text
    assert str(Near()) in text
    assert f"{SignStep()}: doubtful: success" not in text


def test_success_in_half_the_radius_alone_is_said() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Timid(Stands):
        """Searches small balls alone."""

        def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
            return SignStep().perturb(model, x, y, ball, targeted=targeted) if ball.largest < 0.1 else x

    case = _case()
    table = rp.compare(case.model, case.x, case.y, BALL, [Timid(), "rp:margin-pgd"], seed=0)
    assert any("in half the radius it breaks" in reason for reason in table.rows[0].health)
    assert table.rows[1].health == ()


def test_random_models_are_left_to_the_confirmed_counts() -> None:
    table = _compared(lambda body, x: body(x + 0.05 * torch.randn_like(x)), [SignStep(), "rp:auto"])
    assert [row.health for row in table.rows] == [(), ()]
    assert "draws at random" in str(table)


def test_a_check_that_fails_loses_no_number(monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(checks, "diagnosed", fails)
    table = _compared(None, [SignStep()])
    assert table.rows[0].accuracy is not None
    assert "could not be checked: RuntimeError: boom" in table.rows[0].health[0]


@pytest.mark.parametrize(
    "name", ["rp:square", "rp:hopskipjump", "art:square", "art:hopskipjump", "art:boundary", "art:zoo"]
)
def test_attacks_by_outputs_say_so(name) -> None:
    assert rp.attack(name).black_box
    assert not rp.attack("rp:margin-pgd").black_box
