"""The public calls: what they recompute, refuse and judge, whatever a backend returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from support.toys import Boxes, SignStep
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins import Verdict
from robust_plugins.harness.component import chunks
from robust_plugins.testing.networks import mlp_case

BALL = rp.Linf(eps=0.1, clip=(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Returns(rp.Attack):
    """Returns what it is told to."""

    value: object = None

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
        return self.value(x) if callable(self.value) else self.value  # type: ignore[return-value]


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


class TestAttack:
    def test_what_leaves_the_ball_is_projected(self) -> None:
        case = mlp_case()
        result = Returns(value=lambda x: x + 5)(case.model, case.x, case.y, BALL)
        assert BALL.contains(result.x_adv, case.x, tolerance=0).all()

    def test_nan_counts_as_nothing_found(self) -> None:
        case = mlp_case()
        result = Returns(value=lambda x: x * torch.nan)(case.model, case.x, case.y, BALL)
        assert torch.equal(result.x_adv, case.x)
        assert result.success.tolist() == [False] * 5 + [True]

    def test_a_wrong_shape_is_a_broken_contract(self, unchecked) -> None:
        case = mlp_case()
        for value in (lambda x: x[:, :2], None, lambda x: x.tolist()):
            with pytest.raises(rp.ComponentError, match="perturb returned"):
                Returns(value=value)(case.model, case.x, case.y, BALL)

    def test_the_worse_of_candidate_and_input_is_kept(self) -> None:
        """Moving along the gradient raises the loss, so moving against it must be discarded."""
        case = mlp_case()

        @dataclass(frozen=True, kw_only=True)
        class Backwards(SignStep):
            def perturb(self, model: nn.Module, x: Tensor, y: Tensor, ball: rp.Ball, *, targeted: bool) -> Tensor:
                return super().perturb(model, x, y, ball, targeted=not targeted)

        result = Backwards()(case.model, case.x, case.y, rp.Linf(eps=0.01, clip=(0.0, 1.0)))
        assert torch.equal(result.x_adv, case.x)
        assert result.distance.abs().sum() == 0

    def test_random_targets_are_uniform_over_the_wrong_classes(self) -> None:
        model, x = nn.Linear(2, 4), torch.rand(6000, 2)
        y = torch.arange(6000) % 4
        target = Returns(value=lambda x: x)(model, x, y, BALL, target="random", seed=1).target
        assert (target != y).all()
        for label in range(4):
            counts = target[y == label].bincount(minlength=4)
            assert counts[label] == 0
            assert (counts[torch.arange(4) != label] - 500).abs().max() < 80  # four standard deviations

    def test_the_least_likely_class_is_never_the_label(self) -> None:
        model, x = nn.Linear(2, 4), torch.rand(50, 2)
        y = model(x).argmin(1)
        target = Returns(value=lambda x: x)(model, x, y, BALL, target="least_likely").target
        second = model(x).argsort(1)[:, 1]
        assert torch.equal(target, second)

    def test_a_target_must_be_another_class(self, unchecked) -> None:
        case = mlp_case()
        with pytest.raises(rp.ArgumentError, match="equal to y"):
            SignStep()(case.model, case.x, case.y, BALL, target=case.y)
        with pytest.raises(rp.ArgumentError, match="'random' or 'least_likely'"):
            SignStep()(case.model, case.x, case.y, BALL, target="worst")

    def test_an_inference_tensor_is_accepted(self) -> None:
        case = mlp_case()
        with torch.inference_mode():
            x = case.x.clone()
            result = SignStep()(case.model, x, case.y, BALL, seed=0)
        assert torch.equal(result.x_adv, SignStep()(case.model, case.x, case.y, BALL, seed=0).x_adv)

    def test_a_sweep_repeats_single_calls(self) -> None:
        case = mlp_case()
        results = SignStep()(case.model, case.x, case.y, BALL, eps=[0.05, 0.1], seed=0)
        alone = SignStep()(case.model, case.x, case.y, BALL, seed=0)
        assert torch.equal(results[1].x_adv, alone.x_adv)


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
        model = nn.Sequential(case.model, nn.Softsign())
        certificate = Boxes()(model, case.x, case.y, BALL)
        assert certificate.verdicts == (Verdict.UNSUPPORTED,) * 5 + (Verdict.FALSIFIED,)
        assert "Softsign" in certificate.messages[0]
        assert (certificate.margin == -torch.inf).all()
        with pytest.raises(rp.UnsupportedModelError, match="Softsign"):
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


def test_nan_logits_are_no_success() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((x[:, 0], -x[:, 0]), 1) / (x[:, :1] <= 0.5) * (x[:, :1] <= 0.5)

    x = torch.tensor([[0.45]])
    result = Returns(value=lambda x: x + 0.1)(Breaks(), x, torch.tensor([0]), BALL)
    assert not result.success.item()
    assert result.logits.isfinite().all()


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
        ((MODEL, X[0], Y, BALL), r"unsqueeze"),
        ((MODEL, X.half(), Y, BALL), r"torch.float16; accepted: a batch .* in float32 or float64"),
        ((MODEL, X.numpy(), Y, BALL), r"`x` is ndarray; accepted: a torch.Tensor"),
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


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_models_are_attacked() -> None:
    torch.manual_seed(0)
    model, x = _Recurrent(), torch.rand(3, 5, 3)
    result = SignStep()(model, x, torch.tensor([0, 1, 2]), BALL, seed=0)
    assert (result.distance > 0).all()
    assert torch.backends.cudnn.enabled
