"""Cascades: who sees which sample, who decides it, and that no stage's answer is made more of than it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from click.testing import CliRunner
from support.toys import Boxes, SignStep, Unbounded
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.decisions.judgement import Decision
from robust_plugins.testing import certifier_checks

BALL = rp.Linf(eps=tuple(0.0375 * (i % 4 + 1) for i in range(12)), clip=(0.0, 1.0))


@pytest.fixture
def case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(28)
    model = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    x = torch.rand(12, 5)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3  # misclassified
    return model, x, y


@dataclass(frozen=True, kw_only=True)
class Says(rp.Certifier):
    """A certifier that gives the same margin everywhere, stops at some samples, and remembers what it was asked."""

    margin: float = -1.0
    stops: bool = False
    off: float = 0.0
    asked: list[Tensor] = field(default_factory=list, compare=False, hash=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounding", self.off)

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        raise rp.UnsupportedModelError("says nothing of bounds")

    def decide(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, spec: Tensor) -> Decision:
        self.asked.append(x)
        lower = x.new_full(spec.shape[:2], self.margin)
        stopped = tuple(bool(z[0] > 0.5) for z in x) if self.stops else ()
        messages = tuple("used up" if s else "" for s in stopped)
        return Decision(rp.Interval(lower, torch.full_like(lower, torch.inf)), None, stopped, messages)


def test_each_sample_goes_as_far_as_it_must(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    names = ("interval:ibp", "interval:crown", "interval:branch-and-bound(timeout=20)")
    spies = [Says(margin=-1.0 - i) for i in range(4)]
    stages: list[str | rp.Attack | rp.Certifier] = [spies[0], SignStep(), spies[1], names[0], spies[2], *names[1:]]
    found = rp.cascade([*stages, spies[3]], seed=1)(model, x, y, BALL)
    alone = {name: rp.certifier(name)(model, x, y, BALL) for name in names}
    broken = SignStep()(model, x, y, BALL, seed=1).success
    broken[0] = False
    assert broken.sum() > 0
    assert found.decided_by[0] == "the model"
    for i, by in enumerate(found.decided_by[1:], 1):
        expected = next((n for n in names if alone[n].certified[i]), None)
        falsified = alone[names[2]].verdicts[i] is rp.Verdict.FALSIFIED
        assert by == (str(SignStep()) if broken[i] else expected or (names[2] if falsified else None))
    assert len({*found.decided_by}) == 5, "every stage that can decide one did"
    left = [sum(verdict is not None for verdict in stage.verdicts) for stage in found.stages]
    order = [stage.name for stage in found.stages]
    gone = [sum(by in order[:k] for by in found.decided_by) for k in range(len(order))]
    assert left == [11 - count for count in gone]
    assert left[-1] == 0
    assert [sum(map(len, spy.asked)) for spy in spies] == [left[0], left[2], left[4], 0]
    assert all((stage.seconds > 0) == (count > 0) for stage, count in zip(found.stages, left, strict=True))
    assert "floating-point" not in found.stages[3].soundness
    assert found.stages[3].soundness == alone[names[0]].soundness
    falsified = torch.tensor([v is rp.Verdict.FALSIFIED for v in found.verdicts])
    assert bool((model(found.witness[falsified]).argmax(1) != y[falsified]).all())
    radii = torch.tensor(BALL.radii)[falsified]
    inside = rp.Linf(eps=radii, clip=BALL.clip).contains(found.witness[falsified], x[falsified], tolerance=0)
    assert bool(inside.all())
    assert torch.equal(found.certified, torch.stack([c.certified for c in alone.values()]).any(0))


def test_chunks_are_joined(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    stages = [SignStep(), "interval:ibp", "interval:crown"]
    whole, parts = (rp.cascade(stages, batch_size=size)(model, x, y, BALL) for size in (None, 5))
    assert whole.verdicts == parts.verdicts
    assert whole.decided_by == parts.decided_by
    assert [stage.verdicts for stage in whole.stages] == [stage.verdicts for stage in parts.stages]


def test_timeouts_and_messages_are_passed_on(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    stopping, last = Says(stops=True), Says(margin=-0.5)
    found = rp.cascade([stopping, last])(model, x, y, BALL)
    for z, verdict, message in list(zip(x, found.verdicts, found.messages, strict=True))[1:]:
        stopped = bool(z[0] > 0.5)
        assert verdict is (rp.Verdict.TIMEOUT if stopped else rp.Verdict.UNKNOWN)
        assert message == (f"{stopping}: timeout: used up" if stopped else "")
    assert {rp.Verdict.TIMEOUT, rp.Verdict.UNKNOWN} <= {*found.verdicts}
    assert found.decided_by[1:] == (None,) * 11
    assert bool((found.margin[1:] == -0.5).all()), "the best margin that any stage proved"


@pytest.mark.parametrize(
    ("stages", "verdict"),
    [
        ([Says(margin=-1.0), Says(margin=float("nan"))], rp.Verdict.ERROR),
        ([Says(margin=1e9), "interval:crown"], rp.Verdict.ERROR),  # above the clean margin
        ([Says(margin=1e-3, off=0.5), Says(margin=-1.0)], rp.Verdict.UNKNOWN),  # within its rounding of zero
        ([Says(margin=1e-30)], rp.Verdict.CERTIFIED),  # its own rounding is taken off already
    ],
    ids=["nan", "above", "within rounding", "outward"],
)
def test_answers_are_neither_lost_nor_made_more_of(
    case: tuple[nn.Module, Tensor, Tensor], stages: Sequence[str | rp.Certifier], verdict: rp.Verdict
) -> None:
    model, x, y = case
    found = rp.cascade(stages)(model, x[1:], y[1:], rp.Linf(eps=2.0, clip=None))
    assert {*found.verdicts} == {verdict}
    assert bool((found.margin <= 0).all()) or verdict is rp.Verdict.CERTIFIED
    assert all(found.messages) == (verdict is rp.Verdict.ERROR)


def test_unsupported_is_what_all_of_them_say() -> None:
    model, x = (
        nn.Sequential(nn.Linear(3, 4), Unbounded()),
        torch.rand(3, 3),
    )
    y, ball = model(x).argmax(1), rp.Linf(eps=0.3, clip=(0, 1))
    both = rp.cascade(["interval:ibp", Says()])(model, x, y, ball)
    assert {*both.verdicts} == {rp.Verdict.UNKNOWN}
    none = rp.cascade(["interval:ibp", "interval:crown"])
    assert {*none(model, x, y, ball).verdicts} == {rp.Verdict.UNSUPPORTED}
    with pytest.raises(rp.UnsupportedModelError, match=r"interval:ibp: .*Unbounded.*; interval:crown: "):
        none.bounds(model, x, ball)


def test_bounds_are_those_that_all_agree_on(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, _ = case
    ball = rp.Linf(eps=0.5, clip=None)
    ibp, crown = (rp.certifier(f"interval:{name}").bounds(model, x, ball) for name in ("ibp", "crown"))
    both = rp.cascade(["interval:ibp", SignStep(), "interval:crown"]).bounds(model, x, ball)
    assert torch.equal(both.lower, ibp.meet(crown).lower)
    assert torch.equal(both.upper, ibp.meet(crown).upper)


def test_it_is_a_component_like_any_other(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    name = "cascade(stages=['interval:ibp', 'interval:alpha-crown(steps=3)'])"
    made = rp.certifier(name)
    assert made == rp.cascade(["interval:ibp", "interval:alpha-crown(steps=3)"])
    assert hash(made) == hash(rp.certifier(name))
    comparison = rp.compare(model, x, y, rp.Linf(eps=0.05, clip=(0, 1)), [SignStep(), name], seed=0)
    assert comparison[name].accuracy is not None
    assert comparison.crossings == ()
    shown = CliRunner().invoke(
        commands, ["compare", "--data", "moons", "--model", "linear", "--epochs", "1", "--samples", "8",
                   "--eps", "0.02", "--component", name, "--json"],
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.stdout)["comparisons"][0]["rows"]
    assert row["name"] == name
    assert row["accuracy"] > 0.5


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "check",
    [c for c in certifier_checks if c.__name__ in ("is_frozen_data", "nan_is_an_error", "misclassified_is_falsified")],
)
def test_it_keeps_the_contract(check: Callable[[rp.Certifier], None]) -> None:
    """The other checks are slow, and run with those of all registered certifiers."""
    check(rp.cascade([SignStep(), Boxes()]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"`stages` is \[\]"),
        ("interval:crown", r"For example \['interval:crown'\]"),
        ([1], "holding 1"),
        (["art:fgsm"], "at least one certifier"),
        (["interval:ibp", "interval:ibp"], "each stage once"),
    ],
)
def test_stages_that_are_none(stages: object, message: str) -> None:
    with pytest.raises(rp.ArgumentError, match=message):
        rp.cascade(stages)
    with pytest.raises(rp.UnknownNameError, match="interval:crown"):
        rp.cascade(["interval:crwn"])
    assert rp.cascade(["interval:crown"])


def test_an_unsound_stage_is_found_out(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = case
    wide = rp.Linf(eps=0.5, clip=(0, 1))
    lying = rp.cascade([Boxes(), Says(margin=1e-30)])
    assert rp.compare(model, x, y, wide, [SignStep(), lying], seed=0).crossings
