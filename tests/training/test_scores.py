"""`Scores`: what is counted, and what could not be computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.digits import EPS, batched, network
from support.toys import Unbounded
from torch import nn
from torch.optim.swa_utils import AveragedModel

import robust_plugins as rp
from robust_plugins.training.curve import learning_curve


@contextmanager
def _doubles() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def test_scores_count_what_is_right(digits: rp.Dataset) -> None:
    ball = rp.Linf(eps=EPS, clip=digits.clip)
    x, y = digits.x_test[:40], digits.y_test[:40]
    broken = network(digits, (8,))
    with torch.no_grad():
        broken[-1].bias[:] = torch.nan
    missing = "error: the bounds are NaN"
    assert rp.Scores(x=x, y=y, ball=ball)(broken) == {"clean": 0, "art:pgd": 0, "interval:ibp": missing}
    torch.manual_seed(0)
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        expected = ((single(x) > 0).squeeze(1) == (y > 4)).float().mean().item()
    scores = rp.Scores(x=x, y=(y > 4).long(), ball=rp.Linf(eps=1e-6, clip=digits.clip))(single)
    assert scores == {name: pytest.approx(expected) for name in ("clean", "art:pgd", "interval:ibp")}
    found = [rp.Scores(x=x, y=y, ball=ball, attack="art:pgd(steps=1)", certifier=None, seed=seed) for seed in (0, 1)]
    weak = network(digits, (8,))
    assert found[0](weak) == found[0](weak)
    for wrong in ({"attack": "art:pdg"}, {"certifier": "interval:ipb"}):
        with pytest.raises(rp.UnknownNameError):
            rp.Scores(x=x, y=y, ball=ball, **wrong)
    with pytest.raises(rp.ArgumentError, match="at least 1"):
        rp.Scores(x=x[:0], y=y[:0], ball=ball)


def _unbounded() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Unbounded())


def test_a_model_that_cannot_be_bounded_is_not_shown_as_zero(
    digits: rp.Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In scores, records, their tables and JSON, checkpoints and curves; and what is computed stays."""
    ball, x, y = rp.Linf(eps=EPS, clip=digits.clip), digits.x_test[:40], digits.y_test[:40]
    scores, model = rp.Scores(x=x, y=y, ball=ball, batch_size=15), _unbounded()
    found = scores(model)
    assert found["interval:ibp"].startswith("unsupported: ")
    assert 0 <= found["art:pgd"] <= found["clean"] <= 1
    record = rp.fit(model, batched(digits, samples=64), rp.recipe("standard"), epochs=1, evaluate=scores,
                    optimizer=torch.optim.Adam(model.parameters()), checkpoint=tmp_path)  # fmt: skip
    lines = str(record).splitlines()
    assert lines[1].split()[-1] == "unsupported"
    assert lines[2] == f"interval:ibp: {found['interval:ibp']}"
    assert capsys.readouterr().err.splitlines() == lines
    assert rp.TrainingRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    curve = learning_curve(record.to_dict()["epochs"])
    assert "interval:ibp (unsupported)" in curve
    again = rp.fit(model, batched(digits, samples=64), rp.recipe("standard"), epochs=1, evaluate=scores,
                   optimizer=torch.optim.Adam(model.parameters()), checkpoint=tmp_path, progress=False)  # fmt: skip
    assert again == record


def test_a_component_that_fails_is_not_shown_as_zero(digits: rp.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise rp.ComponentError("out of order")

    scores = rp.Scores(x=digits.x_test[:4], y=digits.y_test[:4], ball=rp.Linf(eps=EPS, clip=digits.clip))
    monkeypatch.setattr(type(rp.attack("art:pgd")), "perturb", broken)
    assert scores(network(digits, (8,)))["art:pgd"] == "error: out of order"


def test_labels_of_other_kinds_count_the_same(digits: rp.Dataset) -> None:
    x, y, model = digits.x_test[:40], digits.y_test[:40], network(digits, (8,))
    ball = rp.Linf(eps=0.001, clip=digits.clip)
    expected = rp.Scores(x=x, y=y, ball=ball)(model)
    hot = nn.functional.one_hot(y, 10)
    for labels in (y.int(), y.to(torch.uint8), y.float(), y.unsqueeze(1), hot, hot.float(), hot.double()):
        assert rp.Scores(x=x, y=labels, ball=ball)(model) == expected
    torch.manual_seed(0)
    single, bits = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0)), y > 4
    expected = rp.Scores(x=x, y=bits.long(), ball=ball)(single)
    for labels in (bits, bits.float(), bits.float().unsqueeze(1)):
        assert rp.Scores(x=x, y=labels, ball=ball)(single) == expected
    soft = hot * 0.9 + 0.01
    for labels, said in ((soft, r"y\.argmax\(1\)"), (y + 0.5, "whole numbers"), (y + 1, "from 0 to 9")):
        with pytest.raises(rp.ArgumentError, match=said):
            rp.Scores(x=x, y=labels, ball=ball)(model)
    assert rp.Scores(x=x, y=soft.argmax(1), ball=ball)(model) == rp.Scores(x=x, y=y, ball=ball)(model)
    with pytest.raises(rp.ArgumentError, match=r"\(y > 0.5\)"):
        rp.Scores(x=x, y=bits.float() * 0.9 + 0.05, ball=ball)(single)
    assert rp.Scores(x=x, y=(bits.float() * 0.9 + 0.05 > 0.5), ball=ball)(single) == expected


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("wrap", ["compile", "parallel", "averaged", "scripted"])
def test_wrapped_models_have_the_scores_of_what_is_inside(wrap: str, digits: rp.Dataset) -> None:
    model = network(digits, (8,))
    scores = rp.Scores(x=digits.x_test[:40], y=digits.y_test[:40], ball=rp.Linf(eps=0.001, clip=digits.clip))
    expected = scores(model)
    if wrap == "scripted":
        found = scores(torch.jit.trace(model, digits.x_test[:2]))
        assert isinstance(found.pop("interval:ibp"), str)
        assert found == {name: expected[name] for name in found}
        return
    wrapped = {"compile": torch.compile, "parallel": nn.DataParallel, "averaged": AveragedModel}[wrap](model)
    assert scores(wrapped) == expected
    assert expected["interval:ibp"] > 0


@pytest.mark.parametrize("mode", [
    torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16), _doubles,
])  # fmt: skip
def test_ambient_modes_change_no_score(mode: object, digits: rp.Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))
    scores = rp.Scores(x=digits.x_test[:40], y=digits.y_test[:40], ball=rp.Linf(eps=0.001, clip=digits.clip))
    expected = scores(model)
    with mode():
        assert scores(model) == expected
        again = rp.Scores(x=digits.x_test[:40].clone(), y=digits.y_test[:40].clone(), ball=scores.ball)
        assert again(model) == expected
