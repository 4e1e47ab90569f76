"""What has no answer is said in words and with its cause, in tables, pages, plots and JSON: never as a number."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.brackets import Row
from robust_plugins.brackets.comparison import comparison_table
from robust_plugins.brackets.decision_plots import accuracy_plot
from robust_plugins.brackets.decisions import _accuracy
from robust_plugins.brackets.explanation_plots import deviation_plot
from robust_plugins.explanations.certifiers import IBP
from robust_plugins.registry.information import Kind
from robust_plugins.testing.networks import mlp_case

CONTRADICTS = "No attack contradicts a certificate."
HELD = "No attack was held against a certificate."
QUICK = "gradient:corner-pgd(corners=4, steps=2, restarts=1, rung=1)"
SILENT = [rp.Verdict.UNSUPPORTED, rp.Verdict.TIMEOUT, rp.Verdict.ERROR]


@dataclass(frozen=True, kw_only=True)
class Silent(rp.Certifier):
    """Has no answer, in one of the ways in which that can be."""

    how: str = "unsupported"
    share: float = 1.0
    """Of the samples."""

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        if self.how == "unsupported":
            raise rp.UnsupportedModelError("no rule for this layer")
        if self.how == "failed":
            raise MemoryError("too large")
        found = Boxes().propagate(model, x, ball, spec)
        none = (torch.arange(len(x)) < self.share * len(x)).unsqueeze(1)
        return rp.Interval(torch.where(none, torch.nan, found.lower), torch.where(none, torch.nan, found.upper))


def compared(*components: object, batch: int = 8) -> rp.Comparison:
    case = mlp_case(batch=batch, normalised=False)
    return rp.compare(case.model, case.x, case.y, rp.Linf(eps=0.001, clip=(0, 1)), components, seed=0)


def last_cell(table: rp.Comparison, row: int) -> str:
    return comparison_table([table]).rows[row + 1][-1]


@pytest.mark.parametrize("how", ["unsupported", "failed", "error"])
def test_a_certifier_without_an_answer_is_no_number(how: str, tmp_path: Path) -> None:
    table = compared(SignStep(), Silent(how=how))
    cause = {"unsupported": "no rule for this layer", "failed": "MemoryError: too large", "error": "the bounds are NaN"}
    assert table.rows[1].accuracy is None
    assert table.bracket == rp.Bracket(table.rows[0].accuracy, None)
    assert last_cell(table, 1) == how
    text = str(table)
    assert "is at most 0.875; no certifier has an answer." in text
    assert cause[how] in text
    assert HELD in text
    assert CONTRADICTS not in text
    assert "between" not in text
    out = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert out["bracket"]["certified"] is out["rows"][1]["accuracy"] is None
    assert cause[how] in out["rows"][1]["causes"][0]
    pytest.importorskip("matplotlib")
    page = rp.write_report(tmp_path / "page.html", [table], title="t").read_text()
    assert f"<td>{how}</td>" in page
    assert cause[how] in page
    assert "0.000" not in page
    assert CONTRADICTS not in page
    assert '<div class="verdict open">' in page


def test_what_has_an_answer_for_some_samples_says_how_many_it_lacks() -> None:
    table = compared(SignStep(), Silent(how="error", share=0.5), "interval:ibp")
    partial = table.rows[1]
    assert partial.accuracy == pytest.approx(3 / 8)  # four without an answer, and the last one is misclassified
    assert last_cell(table, 1) == "0.375 (4 error)"
    assert partial.causes == ("error on 4 of 8 samples: the bounds are NaN",)
    assert table.rows[2].causes == ()
    assert table.bracket.certified == table.rows[2].accuracy
    assert CONTRADICTS in str(table)


def test_a_loose_bound_is_an_answer() -> None:
    case = mlp_case()
    table = rp.compare(case.model, case.x, case.y, rp.Linf(eps=10.0, clip=None), [SignStep(), Boxes()], seed=0)
    assert table.bracket.certified == 0.0
    assert last_cell(table, 1) == "0.000"


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ([], "is at most 0.875, which is clean; no attack ran, and no certifier ran."),
        ([SignStep()], "is at most 0.875; no certifier ran."),
        ([Boxes()], "is at least 0.875, and at most 0.875, which is clean; no attack ran."),
        ([Silent()], "is at most 0.875, which is clean; no attack ran, and no certifier has an answer."),
    ],
)
def test_what_did_not_run_is_said(components: list[object], said: str) -> None:
    text = str(compared(*components))
    assert said in text
    assert HELD in text
    assert CONTRADICTS not in text


@given(st.lists(st.sampled_from([*rp.Verdict]), min_size=1, max_size=6), st.data())
def test_a_share_needs_an_answer(verdicts: list[rp.Verdict], data: st.DataObject) -> None:
    """A certifier's accuracy is a number where it answered for a sample, or was asked for none; else it has a word."""
    correct = [v is not rp.Verdict.FALSIFIED or data.draw(st.booleans()) for v in verdicts]
    flags = torch.tensor([v is rp.Verdict.CERTIFIED for v in verdicts])
    n, messages = len(verdicts), tuple(f"cause of {v.value}" if v in SILENT else "" for v in verdicts)
    none = torch.zeros(n, 2)
    proof = rp.Certificate(tuple(verdicts), none[:, 0], none, flags, none, messages, 0.1, "")
    accuracy = _accuracy(proof, torch.tensor(correct))
    row = Row("c", Kind.CERTIFIER, accuracy, 0.1, proof)
    silent = [v for v in verdicts if v in SILENT]
    asked = [v for v, right in zip(verdicts, correct, strict=True) if right or v is not rp.Verdict.FALSIFIED]
    answered = [v for v in asked if v not in SILENT]
    assert (accuracy is None) == (bool(silent) and not answered)
    assert bool(row.causes) == bool(silent)
    assert all(v.value in row.cell and f"cause of {v.value}" in " ".join(row.causes) for v in silent)
    assert (re.fullmatch(r"\d\.\d{3}", row.cell) is not None) == (not silent)


def test_a_model_of_nan_is_told() -> None:
    case = mlp_case()
    model = nn.Sequential(case.model, _Nan())
    table = rp.compare(model, case.x, case.y, case.ball, [SignStep(), "interval:ibp"], seed=0)
    assert table.clean == 0
    assert last_cell(table, -1) == "0.000 (6 NaN)"
    assert "The model's logits are NaN for 6 of 6 samples" in str(table)
    assert table.bracket.certified is None


class _Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan


def test_plots_leave_out_what_has_no_answer() -> None:
    pytest.importorskip("matplotlib")
    case = mlp_case(normalised=False)
    balls = [rp.Linf(eps=eps, clip=(0, 1)) for eps in (0.01, 0.02)]
    for components in ([Silent()], [SignStep(), Silent()], []):
        assert accuracy_plot([rp.compare(case.model, case.x, case.y, b, components, seed=0) for b in balls])
    for chosen in ([Unable()], [QUICK, Unable()], [Endless(), QUICK]):
        assert deviation_plot([rp.compare_explanations(case.model, case.x, case.y, b, chosen, seed=0) for b in balls])


@dataclass(frozen=True, kw_only=True)
class Unable(IBP):
    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        raise rp.UnsupportedModelError("no rule for this layer")


@dataclass(frozen=True, kw_only=True)
class Endless(IBP):
    """Bounds that say nothing."""

    def gradient_bounds(
        self, model: nn.Module, x: Tensor, ball: rp.Ball, explained: rp.Explained, *, radius: float
    ) -> rp.Interval:
        return rp.Interval(torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf))


def explained(*components: object) -> rp.ExplanationComparison:
    case = mlp_case(normalised=False)
    return rp.compare_explanations(case.model, case.x, case.y, case.ball, components, k=2, delta=0.5, seed=0)


def test_explanations_without_an_answer_are_no_numbers(tmp_path: Path) -> None:
    table = explained(QUICK, Unable())
    assert table.deviation.certified is None
    assert table.share("robust").certified is None
    text = str(table)
    assert re.search(r"certified +unsupported\n", text)
    assert "unsupported on 6 of 6 samples: no rule for this layer" in text
    assert "no certifier has an answer" in text
    assert "between" not in text
    assert HELD in text
    out = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert out["rows"][1]["deviation"] is out["bracket"]["deviation"]["certified"] is None
    assert out["bracket"]["robust"]["certified"] is None
    assert out["rows"][1]["causes"] == ["unsupported on 6 of 6 samples: no rule for this layer"]
    pytest.importorskip("matplotlib")
    page = rp.write_explanation_report(tmp_path / "page.html", [table], title="t").read_text()
    assert "<td>unsupported</td>" in page
    assert CONTRADICTS not in page


def test_infinite_bounds_are_unbounded_in_words_and_null_in_json() -> None:
    table = explained(QUICK, Endless())
    assert re.search(r"certified +unbounded +0\.000", str(table))
    assert " and unbounded;" in str(table)
    assert " inf" not in str(table)
    out = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert out["rows"][1]["deviation"] == out["bracket"]["deviation"]["certified"] == [None] * 6


@pytest.mark.parametrize(("component", "said"), [(QUICK, "no certifier ran"), ("interval:ibp", "no attack ran")])
def test_one_side_of_explanations_alone_is_said(component: str, said: str) -> None:
    text = str(explained(component))
    assert said in text
    assert "between" not in text
    assert CONTRADICTS not in text


def test_nothing_was_explained() -> None:
    assert "no attack ran; no certifier ran." in str(explained())


def test_explanations_that_are_nan_are_told() -> None:
    case = mlp_case(normalised=False)
    model = nn.Sequential(case.model, _Nan())
    table = rp.compare_explanations(model, case.x, case.y, case.ball, [QUICK, "interval:ibp"], seed=0)
    assert table.deviation == rp.Bracket(None, None)
    assert "undefined on 6 of 6 samples: their explanation is NaN" in str(table)
    json.dumps(table.to_dict(), allow_nan=False)
