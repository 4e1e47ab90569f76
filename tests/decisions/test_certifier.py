"""The public calls of a certifier: what they check and judge, whatever a backend returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from support.toys import Boxes, Unbounded
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins import Verdict
from robust_plugins.testing.networks import mlp_case

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Claims(rp.Certifier):
    """Claims what it is told to, and records the sizes of its batches."""

    claim: object = None
    sizes: list = field(default_factory=list, compare=False)

    def propagate(self, model: nn.Module, x: Tensor, ball: rp.Ball, spec: Tensor | None) -> rp.Interval:
        self.sizes.append(len(x))
        logits = model(x)
        rows = logits if spec is None else (spec @ logits.unsqueeze(2)).squeeze(2)
        return self.claim(rows)  # type: ignore[operator]


class TestCertifier:
    def test_nan_is_an_error_for_its_sample_alone(self) -> None:
        case = mlp_case()

        def claim(rows: Tensor) -> rp.Interval:
            lower = rows - 0.0
            lower[2, 1] = torch.nan
            return rp.Interval(lower, rows)

        certificate = Claims(claim=claim)(case.model, case.x, case.y, BALL)
        assert certificate.verdicts[2] is Verdict.ERROR
        assert "NaN" in certificate.messages[2]
        assert certificate.margin[2] == -torch.inf
        assert [v for i, v in enumerate(certificate.verdicts) if i != 2] == [Verdict.CERTIFIED] * 4 + [
            Verdict.FALSIFIED
        ]

    def test_crossed_bounds_are_an_error(self) -> None:
        case = mlp_case()
        certificate = Claims(claim=lambda r: rp.Interval(r + 1, r - 1))(case.model, case.x, case.y, BALL)
        assert set(certificate.verdicts) == {Verdict.ERROR}
        assert "cross" in certificate.messages[0]

    def test_bounds_that_miss_the_clean_logits_are_an_error(self) -> None:
        """The sample itself lies in its ball: a bound that excludes it is wrong, however sure it looks."""
        case = mlp_case()
        certificate = Claims(claim=lambda r: rp.Interval(r + 0.1, r + 0.2))(case.model, case.x, case.y, BALL)
        assert set(certificate.verdicts) == {Verdict.ERROR}
        assert "contain" in certificate.messages[0]
        assert not certificate.certified.any()

    def test_a_margin_within_rounding_of_zero_is_unknown(self) -> None:
        case = mlp_case()

        def claim(gap: float) -> object:
            return lambda r: rp.Interval(torch.full_like(r, gap), r.clamp(min=2 * gap) + 1)

        x, y = case.x[:1], case.y[:1]
        scale = Claims(claim=claim(1e-9))(case.model, x, y, BALL).logits.abs().max().item()
        assert Claims(claim=claim(1e-7 * scale))(case.model, x, y, BALL).verdicts == (Verdict.UNKNOWN,)
        assert Claims(claim=claim(1e-4 * scale))(case.model, x, y, BALL).verdicts == (Verdict.CERTIFIED,)

    def test_a_margin_within_the_models_own_rounding_error_is_unknown(self) -> None:
        """Logits near 0.1 from terms near 10^4: a proved margin of 10^-4 is noise, though it is 10^-3 of the scale."""
        model = nn.Linear(50, 2)
        x = torch.rand(1, 50, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            model.weight.copy_(1000 * torch.rand(2, 50, generator=torch.Generator().manual_seed(0)))
            model.bias.copy_(-(x @ model.weight.T)[0] + torch.tensor([0.1, 0.0]))
        y = model(x).argmax(1)
        claims = Claims(claim=lambda r: rp.Interval(torch.full_like(r, 1e-4), r.clamp(min=1e-4) + 1))
        assert claims(model, x, y, rp.Linf(eps=0, clip=None)).verdicts == (Verdict.UNKNOWN,)

    def test_unsupported_names_the_layer_and_proves_nothing(self) -> None:
        case = mlp_case()
        model = nn.Sequential(case.model, Unbounded())
        certificate = Boxes()(model, case.x, case.y, BALL)
        assert certificate.verdicts == (Verdict.UNSUPPORTED,) * 5 + (Verdict.FALSIFIED,)
        assert "Unbounded" in certificate.messages[0]
        assert (certificate.margin == -torch.inf).all()
        with pytest.raises(rp.UnsupportedModelError, match="Unbounded"):
            Boxes().bounds(model, case.x, BALL)

    def test_a_wrong_return_is_a_broken_contract(self, unchecked) -> None:
        case = mlp_case()
        with pytest.raises(rp.ComponentError, match="propagate returned"):
            Claims(claim=lambda r: r)(case.model, case.x, case.y, BALL)

    def test_chunks_fit_the_budget(self, monkeypatch) -> None:
        case = mlp_case(batch=6)
        exact = Claims(claim=rp.Interval.point, batch_size=4)
        exact(case.model, case.x, case.y, BALL)
        assert exact.sizes == [4, 2]
        monkeypatch.setattr("robust_plugins.decisions.certifier.BUDGET", 1)
        small = Claims(claim=rp.Interval.point)
        small(case.model, case.x, case.y, BALL)
        assert small.sizes == [1] * 6

    def test_the_default_chunk_of_a_large_model_is_bounded(self) -> None:
        """A layer of 10^6 units takes 10^7 bytes or so per sample, so thousands of samples do not go at once."""
        wide = nn.Sequential(nn.Linear(4, 1_000_000), nn.ReLU(), nn.Linear(1_000_000, 2))
        size = Boxes()._chunk_size(wide, torch.rand(5000, 4), 2)
        assert 10 < size < 500

    def test_the_spec_must_fit(self) -> None:
        case = mlp_case()
        with pytest.raises(rp.ArgumentError, match=r"of shape \(6, 2, 3\); accepted: a tensor of shape \(6, rows, 4\)"):
            Boxes().bounds(case.model, case.x, BALL, torch.ones(6, 2, 3))


class TestBoundsAreChecked:
    @pytest.mark.parametrize(
        ("claim", "message"),
        [
            (lambda r: rp.Interval(r + 1, r - 1), "cross or are NaN"),
            (lambda r: rp.Interval(r * torch.nan, r), "cross or are NaN"),
            (lambda r: rp.Interval.point(r[:, :1]), r"of shape \(6, 1\); expected an Interval"),
            (lambda r: rp.Interval.point(r.double()), "torch.float64 of shape"),
            (lambda r: None, "propagate returned None"),
        ],
    )
    def test_what_is_no_bound_is_a_broken_contract(self, claim, message, unchecked) -> None:
        case = mlp_case()
        with pytest.raises(rp.ComponentError, match=message):
            Claims(claim=claim).bounds(case.model, case.x, BALL)
        spec = rp.margin_spec(case.y, case.model(case.x).shape[1])
        with pytest.raises(rp.ComponentError):
            Claims(claim=claim).lower_bounds(case.model, case.x, BALL, spec)

    @pytest.mark.parametrize(
        "claim", [lambda r: None, lambda r: r * torch.nan, lambda r: r[:, :1], torch.Tensor.double]
    )
    def test_what_is_no_lower_bound_is_a_broken_contract(self, claim, unchecked) -> None:
        class Lower(Boxes):
            def propagate_lower(self, model, x, ball, spec):
                return claim(self.propagate(model, x, ball, spec).lower)

        case = mlp_case()
        spec = rp.margin_spec(case.y, case.model(case.x).shape[1])
        with pytest.raises(rp.ComponentError, match="lower"):
            Lower().lower_bounds(case.model, case.x, BALL, spec)
        nobody = Boxes().lower_bounds(case.model, case.x[:0], BALL, spec[:0])
        assert nobody.shape == (0, spec.shape[1])

    def test_ends_that_cross_by_rounding_pass(self) -> None:
        case = mlp_case()
        crossed = Claims(claim=lambda r: rp.Interval(r + 1e-8, r - 1e-8))
        assert crossed.bounds(case.model, case.x, BALL).shape == (6, 4)

    @pytest.mark.parametrize(
        ("spec", "found"),
        [([[1.0]], "list"), (torch.ones(6, 2, 4).double(), "torch.float64"), (torch.ones(6, 4), r"\(6, 4\)")],
    )
    def test_a_wrong_spec_is_named(self, spec, found, unchecked) -> None:
        case = mlp_case()
        with pytest.raises(rp.ArgumentError, match=f"`spec` is .*{found}"):
            Boxes().bounds(case.model, case.x, BALL, spec)
