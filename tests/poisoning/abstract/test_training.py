"""The loop: nominal training is torch's, runs resume, vacuous bounds are said so, wrong arguments are named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.small_trainings import data, network, train
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.errors import ArgumentError, UnknownNameError, UnsupportedModelError


@pytest.mark.parametrize(
    "optimizer",
    [
        rp.SGD(lr=0.5, decay=0.6),
        rp.SGD(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        rp.Adam(lr=0.02),
        rp.AdamW(lr=0.02, weight_decay=0.1),
    ],
    ids=repr,
)
def test_the_nominal_model_is_what_torch_trains(optimizer: Any) -> None:
    model, by_hand = network(), network()
    start = [p.detach().clone() for p in model.parameters()]
    run = train(model, data(), optimizer=optimizer, epochs=3)
    torchs = optimizer.torch(by_hand.parameters())
    for t, (x, y) in enumerate(data() * 3):
        for group in torchs.param_groups:
            group["lr"] = optimizer.learning_rate(t)
        torchs.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        torchs.step()
    for ours, theirs in zip(run.nominal.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for before, after in zip(start, model.parameters(), strict=True):
        assert torch.equal(before, after)
    assert not any(p.requires_grad is False or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("clip", [None, 0.05, rp.NormClip(0.2)], ids=repr)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mse", "hinge"])
def test_without_poison_the_bounds_are_the_nominal_parameters(loss: str, clip: Any) -> None:
    batches = data()
    if loss != "cross_entropy":
        batches = [(x, 2.0 * y - 1 if loss == "hinge" else y.double()) for x, y in batches]
    model = network(2 if loss == "cross_entropy" else 1)
    run = train(model, batches, rp.PoisoningBudget(), loss=loss, clip_gradient=clip)
    for name, p in run.nominal.named_parameters():
        assert run.parameters[name].width.max() <= 1e-12
        assert torch.allclose(run.parameters[name].center, p, atol=1e-12)


def test_per_sample_clipping_is_by_hand() -> None:
    (x, y), model = data(5, 5)[0], network()
    run = train(model, [(x, y)], rp.PoisoningBudget.substitution(1), clip_gradient=rp.NormClip(0.3), epochs=1)
    total = [torch.zeros_like(p) for p in model.parameters()]
    for one, label in zip(x, y, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(one[None]), label[None]), list(model.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        total = [t + g * min(1, 0.3 / norm) for t, g in zip(total, grads, strict=True)]
    for before, after, t in zip(model.parameters(), run.nominal.parameters(), total, strict=True):
        assert torch.allclose(after, before - 0.2 * t / 5, atol=1e-14)


@pytest.mark.filterwarnings("ignore:update")
@pytest.mark.parametrize("wider", [
    (rp.PoisoningBudget(points=1, eps=0.02), rp.PoisoningBudget(points=1, eps=0.03)),
    (rp.PoisoningBudget(points=1, eps=0.02), rp.PoisoningBudget(points=2, eps=0.02)),
    (rp.PoisoningBudget(points=1, eps=0.02, norm="l1"), rp.PoisoningBudget(points=1, eps=0.02, norm="l2")),
    (rp.PoisoningBudget(points=1, eps=0.02, norm="l2"), rp.PoisoningBudget(points=1, eps=0.02)),
    (rp.PoisoningBudget(points=1, eps=0.02, columns=(0,)), rp.PoisoningBudget(points=1, eps=0.02)),
    (rp.PoisoningBudget(labels=1, target=1), rp.PoisoningBudget(labels=1)),
    (rp.PoisoningBudget(points=2, eps=0.02, labels=1, paired=True), rp.PoisoningBudget(points=2, eps=0.02, labels=1)),
    (rp.PoisoningBudget(points=1, eps=0.02), rp.PoisoningBudget(points=1, eps=0.02, labels=1)),
], ids=lambda pair: repr(pair[1]))  # fmt: skip
def test_larger_budgets_give_wider_bounds(wider: tuple[rp.PoisoningBudget, rp.PoisoningBudget]) -> None:
    small, large = (train(network(3), data(classes=3), budget) for budget in wider)
    assert small.width < large.width
    for name, p in small.parameters.items():
        assert bool((large.parameters[name].lower <= p.lower + 1e-9).all())
        assert bool((large.parameters[name].upper >= p.upper - 1e-9).all())


@pytest.mark.filterwarnings("ignore:update")
@pytest.mark.filterwarnings("ignore:the budget has k=12")
@pytest.mark.parametrize("kind", ["substitution", "addition", "removal"])
def test_larger_counts_give_wider_bounds(kind: str) -> None:
    make = getattr(rp.PoisoningBudget, kind)
    widths = [train(network(), data(), make(k), clip_gradient=0.1).width for k in (1, 2, 12)]
    assert widths[0] < widths[1] < widths[2]


def test_one_update_is_exact_where_the_paper_says_so() -> None:
    """One step from points: k removed samples, whose gradients are points; the bounds are attained per coordinate."""
    (x, y), model = data(8, 8)[0], network()
    run = train(model, [(x, y)], rp.PoisoningBudget.removal(2), epochs=1)
    losses = [F.cross_entropy(model(a[None]), b[None]) for a, b in zip(x, y, strict=True)]
    grads = torch.stack([torch.autograd.grad(loss, model[2].weight)[0] for loss in losses])
    largest = grads.sort(0).values[2:].mean(0)
    assert torch.allclose(run.parameters["2.weight"].lower, model[2].weight - 0.2 * largest, atol=1e-12)


def test_frozen_parts_are_fixed_and_their_features_kept() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(),
                          nn.Linear(4, 2)).double().eval()  # fmt: skip
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn((12, 1, 4, 4), generator=g, dtype=torch.float64), torch.randint(0, 2, (12,), generator=g)
    budget = rp.PoisoningBudget(points=2, eps=0.02)
    run = train(model, [(x, y)], budget, parameters=["6.weight", "6.bias"])
    assert list(run.parameters) == ["6.weight", "6.bias"]
    assert torch.equal(run.nominal[0].weight, model[0].weight)
    for p in model[:4].parameters():
        p.requires_grad_(False)
    assert set(train(model, [(x, y)], budget).parameters) == {"4.weight", "4.bias", "6.weight", "6.bias"}
    boxes = {kind: train(model, [(x, y)], budget, relaxation=kind).width for kind in ("none", "affine", "crown")}
    assert boxes["affine"] < boxes["none"]
    assert boxes["crown"] < boxes["none"]


def test_parameters_without_use_are_left_alone() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Extra().double()
    run = train(model, data(), optimizer=rp.SGD(lr=0.1, weight_decay=0.5))
    assert set(run.parameters) == {"used.weight", "used.bias"}
    assert torch.equal(run.nominal.unused.weight, model.unused.weight)


@pytest.mark.parametrize("how", [
    {},
    {"optimizer": rp.Adam(lr=0.02)},
    {"domain": "zonotope"},
    {"aggregation": "cvar"},
], ids=repr)  # fmt: skip
def test_interrupted_runs_resume_to_equal_bounds(how: dict[str, Any], tmp_path: Path) -> None:
    whole = train(network(), data(), epochs=4, **how)
    train(network(), data(), epochs=2, checkpoint=tmp_path, **how)
    resumed = train(network(), data(), epochs=4, checkpoint=tmp_path, **how)
    for name, p in whole.parameters.items():
        assert torch.equal(p.lower, resumed.parameters[name].lower)
        assert torch.equal(p.upper, resumed.parameters[name].upper)
    for a, b in zip(whole.nominal.parameters(), resumed.nominal.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [e.width for e in whole.history] == [e.width for e in resumed.history]


def test_an_epoch_cut_short_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robust_plugins.poisoning.abstract.loop.SAVE_EVERY", -1.0)

    class Interrupted(list[Any]):
        def __iter__(self) -> Any:
            for index, batch in enumerate(list.__iter__(self)):
                if index == 2:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        train(network(), Interrupted(data()), checkpoint=tmp_path)
    with pytest.raises(ArgumentError, match=r"`batches` is others than before the interruption"):
        train(network(), [(x + 1, y) for x, y in data()], checkpoint=tmp_path)
    resumed, whole = train(network(), data(), checkpoint=tmp_path), train(network(), data())
    assert resumed.history[-1].updates == whole.history[-1].updates == 6
    for name, p in whole.parameters.items():
        assert torch.equal(p.upper, resumed.parameters[name].upper)


def test_another_plan_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    train(network(), data(), checkpoint=tmp_path)
    with pytest.raises(ArgumentError, match=r"`loss`|`budget`"):
        train(network(), data(), rp.PoisoningBudget(points=2, eps=0.01), checkpoint=tmp_path)


def test_other_parameters_do_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Else the bounds would be those of one layer, while another one is trained."""
    train(network(2), data(), epochs=1, checkpoint=tmp_path, parameters=["0.weight"])
    with pytest.raises(ArgumentError, match=r"`parameters` is \['2.bias'\]; accepted: \['0.weight'\]"):
        train(network(2), data(), checkpoint=tmp_path, parameters=["2.bias"])


class _Auxiliary(nn.Module):
    """Has a branch that the output does not depend on, and a number as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.aside, self.last = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        self.aside(h)
        out: Tensor = self.last(h) * self.temperature
        return out


@pytest.mark.parametrize("clip", [None, rp.NormClip(0.3)], ids=repr)
def test_branches_without_effect_and_single_numbers(clip: Any) -> None:
    torch.manual_seed(0)
    model = _Auxiliary().double()
    run = train(model, data(), clip_gradient=clip, optimizer=rp.SGD(lr=0.2, weight_decay=0.1))
    assert set(run.parameters) == {"first.weight", "first.bias", "last.weight", "last.bias", "temperature"}
    trained = dict(run.nominal.named_parameters())
    assert torch.equal(trained["aside.weight"], model.aside.weight)  # it has no gradient, so torch leaves it alone
    for name, p in run.parameters.items():
        assert bool(p.contains(trained[name], tolerance=1e-12).all())


@pytest.mark.parametrize("labels", [torch.int64, torch.float32, torch.float64])
def test_moved_labels_are_as_exact_as_the_model(labels: torch.dtype) -> None:
    """Ends `y + radius` rounded to float32 would miss poisoned labels by 1e-3 here."""
    x = data(6, 6)[0][0]
    y = (16000 + torch.arange(6)).to(labels)
    model = nn.Sequential(nn.Linear(3, 1)).double()
    how: dict[str, Any] = {"loss": "mse", "optimizer": rp.SGD(lr=1e-3), "epochs": 1}
    for sign in (-1, 1):
        run = train(model, [(x, y)], rp.PoisoningBudget(labels=6, label_radius=0.3), **how)
        other = train(model, [(x, y.double() + sign * 0.3)], rp.PoisoningBudget(), **how)
        for name, p in other.nominal.named_parameters():
            assert bool(run.parameters[name].contains(p, tolerance=1e-9).all())
    single = train(nn.Linear(3, 1), [(x.float(), y)], rp.PoisoningBudget(labels=1, label_radius=0.3), **how)
    assert single.parameters["weight"].dtype is torch.float32


class _Hooked(nn.Module):
    """A hook multiplies by a parameter that begins at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gain = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(4))
        self.first.register_forward_hook(self.scaled)

    def scaled(self, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self.gain

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def test_parameters_of_hooks_are_trained() -> None:
    """They must not be taken for fixed, while torch trains them."""
    torch.manual_seed(0)
    model, budget = _Hooked().double(), rp.PoisoningBudget(points=1, eps=0.01)
    assert set(train(model, data(), parameters=["last.weight"]).parameters) == {"last.weight"}
    run = train(model, data(), budget)
    attacked = rp.LossAscent()(model, data(), budget, loss="cross_entropy", optimizer=rp.SGD(lr=0.2), epochs=2)
    assert "gain" in run.parameters
    assert run.parameters.keys() == attacked.parameters.keys()
    assert float((run.nominal.gain.detach() - 1).abs().amax()) > 1e-3
    for name, found in attacked.parameters.items():
        assert bool(run.parameters[name].contains(found[0], tolerance=1e-12).all()), name


@pytest.mark.filterwarnings("ignore:.*decide no sample")
def test_a_zonotope_that_overflows_is_given_up() -> None:
    batches = [(x, x.sum(1)) for x, _ in data(4, 2)]
    budget = rp.PoisoningBudget(points=2, eps=0.5)
    with pytest.warns(UserWarning, match="no finite bounds any more"):
        run = train(network(1), batches, budget, loss="mse", optimizer=rp.SGD(lr=3.0), epochs=8, domain="zonotope")
    assert run.vacuous
    assert run.domain is None


def test_vacuous_bounds_are_said_so_and_name_the_layer() -> None:
    budget = rp.PoisoningBudget(points=9, eps=2.0)
    with pytest.warns(UserWarning, match=r"update \d+: the bounds decide no sample of a batch; the outputs of '\w+'"):
        run = train(network(), data(), budget, epochs=3)
    assert run.history[-1].vacuous
    with pytest.warns(UserWarning, match="nothing is certified from here on"):
        run = train(network(), data(), budget, epochs=3, stop_when_vacuous=True)
    assert run.vacuous
    x, y = data()[0]
    assert run.certified_accuracy(x, y) == 0
    assert run.worst_loss(x, y) == math.inf
    assert not bool(run.excludes(x, 1).any())
    assert torch.equal(run.logits(x).lower, torch.full((10, 2), -math.inf).double())


def test_overflowing_bounds_end_without_nan(recwarn: pytest.WarningsRecorder) -> None:
    budget = rp.PoisoningBudget(points=10, eps=1e3)
    run = train(network(), data(), budget, optimizer=rp.SGD(lr=100.0), epochs=120)
    assert any("finite" in str(w.message) for w in recwarn)
    assert run.vacuous
    assert run.history[-1].updates == 360
    assert math.isfinite(run.nominal[0].weight.abs().max().item())
    assert not any(bool(p.lower.isnan().any()) for p in run.parameters.values())


def test_validation_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = data()[0]
    run = train(network(), data(), validation=(x, y), progress=True)
    shown = capsys.readouterr().err
    assert shown.splitlines()[0].split() == ["epoch", "updates", "width", "certified", "nominal", "s", "widest"]
    assert len(shown.splitlines()) == 3
    last = run.history[-1]
    assert last.certified == run.certified_accuracy(x, y)
    assert last.nominal == (run.nominal(x).argmax(1) == y).double().mean()
    assert last.width == pytest.approx(run.width)
    assert last.widest in run.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outward_rounding_widens_a_little(dtype: torch.dtype) -> None:
    near = train(network(dtype=dtype), data(dtype=dtype), relaxation="none")
    outward = train(network(dtype=dtype), data(dtype=dtype), rounding="outward")
    for name, p in near.parameters.items():
        assert bool((outward.parameters[name].lower < p.lower).all())
        assert bool((outward.parameters[name].upper > p.upper).all())
    assert outward.width < 1.1 * near.width + 1e-2


class WeightNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"loss": "nll"}, ArgumentError, "`loss` is 'nll'; accepted: 'cross_entropy', 'binary_cross_entropy'"),
        ({"epochs": 0}, ArgumentError, "`epochs` is 0"),
        ({"clip_gradient": -1.0}, ArgumentError, "`clip_gradient` is -1.0"),
        ({"domain": "ball"}, ArgumentError, "`domain` is 'ball'; accepted: 'box' or 'zonotope'"),
        ({"aggregation": "mean"}, ArgumentError, "`aggregation` is 'mean'"),
        ({"relaxation": "tight"}, ArgumentError, "`relaxation` is 'tight'"),
        ({"rounding": "up"}, ArgumentError, "`rounding` is 'up'"),
        ({"rounding": "outward", "relaxation": "crown"}, ArgumentError, "`relaxation` is 'crown'; accepted: \"auto\""),
        ({"optimizer": torch.optim.SGD}, ArgumentError, "`optimizer` is .*; accepted: rp.SGD, rp.Adam or rp.AdamW"),
        (
            {"budget": rp.PoisoningBudget.substitution(1)},
            ArgumentError,
            "`clip_gradient` is None; accepted: a number above 0",
        ),
        ({"budget": rp.PoisoningBudget(labels=1, label_radius=0.1)}, ArgumentError, "`label_radius` is 0.1"),
        ({"budget": rp.PoisoningBudget(labels=1, target=7)}, ArgumentError, "`target` is 7"),
        ({"budget": {"points": 1}}, ArgumentError, "`budget` is .*; accepted: an rp.PoisoningBudget"),
        ({"parameters": ["3.weight"]}, UnknownNameError, "unknown parameter of the model: '3.weight'"),
        ({"batches": []}, ArgumentError, "`batches` is empty"),
        ({"batches": [(x.float(), y) for x, y in data()]}, ArgumentError, "`batches` is of torch.float32"),
        ({"batches": [(x, y + 5) for x, y in data()]}, ArgumentError, "`y` is .*; accepted: class indices from 0 to 1"),
        ({"loss": "mse"}, ArgumentError, r"`y` is .*; accepted: finite numbers, shape \(batch, 2\)"),
        ({"loss": "hinge"}, ArgumentError, "`model` is with 2 outputs; accepted: one logit"),
        (
            {"domain": "zonotope", "optimizer": rp.Adam(lr=0.1)},
            ArgumentError,
            "`optimizer` is Adam.*SGD without momentum",
        ),
        ({"domain": "zonotope", "clip_gradient": 0.1}, ArgumentError, "`clip_gradient` is .*accepted: None for domain"),
        ({"model": WeightNorm().double()}, UnsupportedModelError, "cannot be trained abstractly"),
        ({"model": nn.Linear(3, 2).double().requires_grad_(False)}, ArgumentError, "`parameters` is none"),
    ],
)
def test_wrong_arguments_are_named(how: dict[str, Any], error: type[Exception], message: str, unchecked: None) -> None:
    how = dict(how)
    with pytest.raises(error, match=message):
        train(how.pop("model", network()), how.pop("batches", data()), how.pop("budget", None), **how)
