"""The bracket of explanations: what attacks reach, what certifiers prove, and contradictions between the two."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.toys import Unbounded
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets.explanation_plots import deviation_plot, explained_samples
from robust_plugins.explanations import CornerPGD
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.explanations.task import Task
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)
from robust_plugins.testing.networks import cnn_case, mlp_case

QUICK = "gradient:corner-pgd(corners=10, steps=4, restarts=2, rung=2)"


@dataclass(frozen=True, kw_only=True)
class Claims(IBP):
    """The planted fault: bounds that lose a share of their width, but still hold the explanation at x."""

    lost: float = 0.0

    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        found = super().gradient_bounds(model, x, ball, explained, radius=radius)
        value = explained.gradient(model, x)
        keep = 1 - self.lost
        return rp.Interval(value + keep * (found.lower - value), value + keep * (found.upper - value))


@dataclass(frozen=True, kw_only=True)
class Fails(IBP):
    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        raise MemoryError("too large")


def relu_case(*, batch: int = 20) -> object:
    return mlp_case(normalised=False, batch=batch)


def test_the_bracket_holds_both_sides() -> None:
    case = relu_case()
    names = [QUICK, "interval:ibp", "interval:relaxed"]
    table = rp.compare_explanations(case.model, case.x, case.y, case.ball, names, k=2, delta=0.2, seed=0)
    low, high = table.deviation
    assert (low <= high + 1e-6).all()
    assert low.max() > 0
    assert high.isfinite().all()
    for what in ("keeps_top_1", "keeps_top_k", "robust"):
        withstood, proved = table.share(what)
        assert 0 <= proved <= withstood <= 1
    assert table.crossings == ()
    tight, loose = table["interval:relaxed"], table["interval:ibp"]
    assert (tight.deviation <= loose.deviation + 1e-6).all()
    certificate = rp.explanation_certifier("interval:relaxed")(case.model, case.x, case.y, case.ball, delta=0.2)
    assert torch.equal(tight.keeps_top_k, certificate.keeps_top(2))
    assert torch.equal(tight.robust, certificate.robust.all(1))
    attack = rp.explanation_attack(QUICK)(case.model, case.x, case.y, case.ball, seed=0)
    assert (table[QUICK].deviation >= attack.deviation).all()
    assert len(table[QUICK].results) == 3
    out = json.loads(json.dumps(table.to_dict()))
    assert out["bracket"]["keeps_top_k"]["certified"] == table.share("keeps_top_k").certified
    assert out["rows"][2]["deviation"] == tight.deviation.tolist()
    with pytest.raises(KeyError):
        table["interval:crown"]


@pytest.mark.parametrize("radius", [0.0, 0.05])
@pytest.mark.parametrize("of", ["logit", "margin", "loss"])
def test_a_bound_that_is_too_tight_is_a_contradiction(of: str, radius: float) -> None:
    case = relu_case()
    components = [CornerPGD(corners=10, steps=4, restarts=2, rung=2), IBP(), Claims(lost=0.9)]
    table = rp.compare_explanations(
        case.model, case.x, case.y, case.ball, components, of=of, radius=radius, k=1, seed=0
    )
    assert table.crossings
    assert {crossing.certifier for crossing in table.crossings} == {str(Claims(lost=0.9))}
    assert {crossing.what for crossing in table.crossings} >= {"a component of the explanation"}
    assert "CONTRADICTION at Linf 0.08, sample " in str(table)
    assert "No attack contradicts" not in str(table)


def test_what_fails_is_a_row_and_no_answer() -> None:
    case = relu_case(batch=4)
    table = rp.compare_explanations(case.model, case.x, case.y, case.ball, [Fails(), "interval:ibp"], seed=0)
    assert table.rows[0].error.startswith("MemoryError: too large (in gradient_bounds, ")
    assert isinstance(table.rows[0].exception, MemoryError)
    assert table.rows[0].deviation is None
    assert "failed" in str(table)
    assert table.deviation[1].isfinite().all()
    odd = nn.Sequential(case.model, Unbounded())
    unsupported = rp.compare_explanations(odd, case.x, case.y, case.ball, ["interval:ibp"], seed=0)
    assert "Unbounded" in unsupported.rows[0].causes[0]
    assert unsupported.deviation == rp.Bracket(None, None)
    assert unsupported.share("keeps_top_1") == rp.Bracket(None, None)


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    case = relu_case(batch=4)
    for arguments, named in (
        ({"components": ["interval:ibp", "interval:ibp"]}, "components"),
        ({"components": [3]}, "components"),
        ({"k": 0}, "k"),
        ({"of": "softmax"}, "of"),
    ):
        with pytest.raises(rp.ArgumentError) as error:
            rp.compare_explanations(
                case.model, case.x, case.y, case.ball, **({"components": ["interval:ibp"]} | arguments)
            )
        assert error.value.argument == named
    with pytest.raises(rp.ArgumentError, match="empty"):
        rp.compare_explanations(case.model, case.x[:0], case.y[:0], case.ball)
    with pytest.raises(rp.UnknownNameError, match="interval:ibp"):
        rp.compare_explanations(case.model, case.x, case.y, case.ball, ["interval:ipb"])


def test_more_features_than_there_are_is_all_of_them() -> None:
    case = relu_case(batch=4)
    table = rp.compare_explanations(case.model, case.x, case.y, case.ball, [QUICK, "interval:ibp"], k=99, seed=0)
    assert table.k == 5
    assert table.share("keeps_top_k") == rp.Bracket(1, 1)


def test_the_page_holds_tables_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    case = cnn_case()
    gray = nn.Sequential(nn.Conv2d(1, 2, 1), case.model)
    for model, x, pictured in ((gray, case.x[:, :1], True), (case.model, case.x, False)):
        tables = [
            rp.compare_explanations(model, x, case.y, rp.Linf(eps=eps, clip=(0.0, 1.0)), [QUICK, "interval:relaxed"],
                                    delta=0.1, seed=0)
            for eps in (0.01, 0.02)
        ]  # fmt: skip
        page = rp.write_explanation_report(tmp_path / "a" / "page.html", tables, title="A < B", samples=2)
        text = page.read_text(encoding="utf-8")
        assert "<h1>A &lt; B</h1>" in text
        assert text.count("<svg") == 1 + pictured
        assert text.count("<table>") == 2
        assert "No attack contradicts a certificate" in text
        assert "src=" not in text  # needs no other file
    assert deviation_plot(tables[:1]) == ""


def test_tables_are_drawn_as_intervals() -> None:
    pytest.importorskip("matplotlib")
    case = relu_case(batch=4)
    table = rp.compare_explanations(case.model, case.x, case.y, case.ball, [QUICK, "interval:relaxed"], seed=0)
    picture, caption = explained_samples(table, 2, ["alpha", "beta", "gamma", "delta", "epsilon"])
    assert all(name in picture for name in ("alpha", "epsilon", "sample 1", "proved interval"))
    assert caption == "Gradients of the logit of class y, bounded by interval:relaxed over Linf 0.08"
    attacks = rp.compare_explanations(case.model, case.x, case.y, case.ball, [QUICK], seed=0)
    assert explained_samples(attacks, 2) == ("", "")


@pytest.mark.usefixtures("unchecked")
def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match="comparisons"):
        rp.write_explanation_report(tmp_path / "page.html", [], title="")


def test_observers_hear_of_the_run(fresh_registry) -> None:  # noqa: F811
    heard = []

    class Observer:
        @rp.hookimpl
        def on_run_start(self, run) -> None:
            heard.append(("start", run["components"], run["samples"]))

        @rp.hookimpl
        def on_record(self, name, result) -> None:
            heard.append((name, type(result).__name__))

        @rp.hookimpl
        def on_run_end(self, error) -> None:
            heard.append(("end", error))

    rp.register(Observer(), "observer")
    case = relu_case(batch=2)
    rp.compare_explanations(case.model, case.x, case.y, case.ball, [QUICK, "interval:ibp"], seed=0)
    assert heard == [
        ("start", [QUICK, "interval:ibp"], 2),
        *[(QUICK, "ExplanationAttackResult")] * 3,
        ("interval:ibp", "ExplanationCertificate"),
        ("end", None),
    ]


@dataclass(frozen=True, kw_only=True)
class Reports(rp.ExplanationAttack):
    """Draws corners, and reports as many ascents that reached the best of them as it is told, and others at half."""

    winners: int = 0
    others: int = 0

    def search(self, task: Task) -> None:
        for _ in range(20):
            task.offer(task.ball.sample(task.x, 1, draw="corner")[0])
        task.ascents += [task.best_score] * self.winners + [task.best_score / 4] * self.others


def test_the_loose_half_is_named_by_ascents_that_agree() -> None:
    case = relu_case(batch=6)
    for attack, expected in (
        (Reports(), None),
        (Reports(winners=1), None),
        (Reports(winners=1, others=3), "attack"),
        (Reports(winners=2, others=3), "certificate"),
    ):
        wide = rp.compare_explanations(case.model, case.x, case.y, case.ball, [attack, Claims(lost=-3.0)], seed=0)
        if expected is None:
            assert wide.loose is None
            continue
        assert set(wide.loose) == {expected}
        assert f"and the attack for {6 if expected == 'attack' else 0}," in wide.known
        assert wide.to_dict()["loose"] == [expected] * 6
    linear = nn.Linear(3, 2)
    both = rp.compare_explanations(linear, torch.rand(2, 3), torch.tensor([0, 1]), case.ball, [QUICK, IBP()], seed=0)
    assert both.loose == ("neither", "neither")
    assert "loose" not in both.known
    one = rp.explanation_attack(QUICK)(case.model, case.x, case.y, case.ball, seed=0)
    assert one.agreeing.shape == (6,)
    assert (one.agreeing >= 0).all()
    assert (one.agreeing <= 3).all()
    assert rp.explanation_attack(QUICK)(case.model, case.x, case.y, case.ball, goal="top_k", seed=0).agreeing is None
