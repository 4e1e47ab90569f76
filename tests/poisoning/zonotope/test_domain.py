"""What a zonotope does around its bounds: exactness, monotony, resumption, other dtypes, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.poisoned_training import Poisoner, poisoners
from support.zonotope_cases import BUDGETS, CASES, Case, everything
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, RobustPluginsError, UnsupportedModelError
from robust_plugins.intervals import Interval, trace
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.zonotope import Zonotope

SHAPES = [CASES[0], CASES[1], CASES[5], CASES[7], CASES[11], CASES[15], CASES[18]]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_without_poison_it_is_the_training(case: Case) -> None:
    model, batches = case.model(), case.batches()
    zonotope = Zonotope.start(trace(model, batches[0][0]), case.names(model), case.loss, PoisoningBudget())
    training = Poisoner(model, case.names(model), case.loss, PoisoningBudget(), "random", 0, batches[0])
    hull = case.trained(zonotope, batches)
    for t, (x, y) in enumerate(batches):
        training.step(x, y, case.lr / (1 + 0.2 * t), case.weight_decay)
    for name, value in training.parameters.items():
        torch.testing.assert_close(hull[name].center, value, atol=1e-12, rtol=0)
        assert float(hull[name].width.max()) < 1e-11


def worst_label_flips(case: Case, model: nn.Module, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The exact range of a parameter's gradient sum over `labels` flips, each coordinate for itself."""
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def gradient(label: Tensor) -> Tensor:
        one = torch.func.grad(
            lambda p, a, b: F.cross_entropy(torch.func.functional_call(model, p, (a[None],)), b[None])
        )
        return torch.func.vmap(one, in_dims=(None, 0, 0))(parameters, x, label)[name]

    clean = gradient(y)
    others = torch.stack([gradient(torch.full_like(y, c)) - clean for c in range(case.outputs)])
    k = case.limits.labels
    most = others.amax(0).topk(k, dim=0).values.clamp(min=0).sum(0)
    least = -(-others).amax(0).topk(k, dim=0).values.clamp(min=0).sum(0)
    return (clean.sum(0) + least) / len(x), (clean.sum(0) + most) / len(x)


@pytest.mark.parametrize("case", [Case("cross_entropy", 2, 6, "labels"), CASES[8]], ids=str)
def test_one_update_with_flipped_labels_is_exact_in_the_last_layer(case: Case) -> None:
    model, (x, y) = case.model(), case.batches()[1]
    zonotope = case.start(model)
    hull = zonotope.step(x, y, lr=0.5, box=everything(zonotope))
    for name in ("2.weight", "2.bias"):
        low, high = worst_label_flips(case, model, x, y, name)
        start = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(hull[name].upper, start - 0.5 * low, atol=1e-9, rtol=0)
        torch.testing.assert_close(hull[name].lower, start - 0.5 * high, atol=1e-9, rtol=0)


def test_one_update_with_moved_points_is_nearly_reached() -> None:
    """A poisoner who moves points in the best direction for one bias all but reaches its bound."""
    case = Case("cross_entropy", 2, 6, "points")
    budget = replace(case.limits, eps=0.005)
    model, (x, y) = case.model(), case.batches()[1]
    names = case.names(model)
    zonotope = Zonotope.start(trace(model, x), names, case.loss, budget)
    hull = zonotope.step(x, y, lr=0.5, box=everything(zonotope))
    training = Poisoner(model, names, case.loss, budget, "parameter", 1, (x, y))
    training.entry, clean = sum(p.numel() for p in model.parameters()) - 1, dict(training.parameters)
    training.step(x, y, 0.5, 0.0)
    without = Poisoner(model, names, case.loss, PoisoningBudget(), "random", 1, (x, y))
    without.step(x, y, 0.5, 0.0)
    assert not torch.equal(clean["2.bias"], training.parameters["2.bias"])
    moved = (training.parameters["2.bias"] - without.parameters["2.bias"])[-1].abs()
    bound = torch.maximum(hull["2.bias"].upper - without.parameters["2.bias"],
                          without.parameters["2.bias"] - hull["2.bias"].lower)[-1]  # fmt: skip
    assert 0.9 < float(moved / bound) <= 1 + 1e-9


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[18]], ids=str)
def test_larger_budgets_are_wider(case: Case) -> None:
    widths = []
    for scale in (0, 1, 2):
        budget = case.limits
        budget = (
            replace(budget, points=budget.points * scale, labels=budget.labels * scale) if scale else PoisoningBudget()
        )
        model, batches = case.model(), case.batches()
        zonotope = Zonotope.start(trace(model, batches[0][0]), case.names(model), case.loss, budget)
        widths.append(sum(float(h.width.sum()) for h in case.trained(zonotope, batches).values()))
    assert widths[0] < 1e-10 < widths[1] < widths[2]


def test_an_empty_batch_leaves_weight_decay_alone() -> None:
    case = CASES[2]
    zonotope, (x, y) = case.start(case.model()), case.batches()[0]
    before = zonotope.step(x, y, lr=0.3, box=everything(zonotope))
    after = zonotope.step(x[:0], y[:0], lr=0.3, weight_decay=0.1, box=everything(zonotope))
    for name, h in after.items():
        torch.testing.assert_close(h.lower, 0.97 * before[name].lower)
        torch.testing.assert_close(h.upper, 0.97 * before[name].upper)


@pytest.mark.parametrize("case", [CASES[2], CASES[7], CASES[18]], ids=str)
def test_what_diverges_goes_on_as_its_box(case: Case) -> None:
    zonotope = case.start(case.model())
    for x, y in case.batches() * 3:
        hull = zonotope.step(x, y, lr=1e4, box=everything(zonotope))
        assert all(bool((h.lower >= -1e9).all() and (h.upper <= 1e9).all()) for h in hull.values())
    assert float(zonotope._state.reach.max()) < 1e30


def test_the_box_is_used() -> None:
    case = CASES[1]
    batches = case.batches()
    free, boxed = case.start(case.model()), case.start(case.model())
    for x, y in batches[:2]:
        hull = free.step(x, y, lr=0.3, box=everything(free))
        half = {n: Interval(h.center - h.radius / 2, h.center + h.radius / 2) for n, h in hull.items()}
        tight = boxed.step(x, y, lr=0.3, box=half)
    x, y = batches[2]
    spec = torch.tensor([1.0, -1.0], dtype=x.dtype).expand(len(x), 1, 2)
    for name, h in tight.items():
        assert bool((h.lower >= half[name].lower - 1e-12).all() and (h.upper <= half[name].upper + 1e-12).all())
    assert float(boxed.bounds(Interval.point(x), spec).width.sum()) < float(
        free.bounds(Interval.point(x), spec).width.sum()
    )


@pytest.mark.parametrize("case", [CASES[2], CASES[5]], ids=str)
def test_a_state_dict_goes_on_bit_for_bit(case: Case) -> None:
    batches = case.batches()
    whole, first, second = (case.start(case.model()) for _ in range(3))
    expected = case.trained(whole, batches)
    case.trained(first, batches[:2])
    second.load_state_dict({name: t.clone() for name, t in first.state_dict().items()})
    for t, (x, y) in enumerate(batches[2:], 2):
        lr = case.lr / (1 + 0.2 * t)
        found = second.step(x, y, lr=lr, weight_decay=case.weight_decay, box=everything(second))
    for name, h in expected.items():
        assert torch.equal(h.lower, found[name].lower)
        assert torch.equal(h.upper, found[name].upper)


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[13], CASES[18]], ids=str)
def test_bounds_over_boxes_of_inputs(case: Case) -> None:
    model, batches = case.model(), case.batches()
    zonotope = case.start(model)
    case.trained(zonotope, batches)
    training = poisoners(model, case.names(model), case.loss, case.limits, 6, batches[0])
    for t, (x, y) in enumerate(batches):
        for one in training:
            one.step(x, y, case.lr / (1 + 0.2 * t), case.weight_decay)
    x = batches[0][0]
    rows = torch.randn((len(x), 4, case.outputs), generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    found = zonotope.bounds(Interval(x - 0.1, x + 0.05), rows)
    point = zonotope.bounds(Interval.point(x), rows)
    assert bool((found.lower <= point.lower + 1e-9).all() and (found.upper >= point.upper - 1e-9).all())
    random = torch.Generator().manual_seed(3)
    for one in training:
        for _ in range(10):
            corner = torch.rand(x.shape, generator=random, dtype=x.dtype).round() * 0.15 - 0.1
            value = torch.einsum("bro,bo->br", rows, one.outputs(x + corner))
            assert bool(found.contains(value, tolerance=1e-11).all())


def test_float32_models_get_float32_bounds() -> None:
    case = CASES[1]
    model = case.model().float()
    batches = [(x.float(), y) for x, y in case.batches()]
    zonotope = Zonotope.start(trace(model, batches[0][0]), case.names(model), case.loss, case.limits)
    hull = case.trained(zonotope, batches)
    assert all(h.dtype == torch.float32 for h in hull.values())
    double = case.model()
    double.load_state_dict(model.state_dict())
    wide = Zonotope.start(trace(double, batches[0][0].double()), case.names(double), case.loss, case.limits)
    exact = case.trained(wide, [(x.double(), y) for x, y in batches])
    for name, h in hull.items():
        assert bool((h.lower.double() <= exact[name].lower).all() and (h.upper.double() >= exact[name].upper).all())
        torch.testing.assert_close(h.center.double(), exact[name].center, atol=1e-4, rtol=1e-4)


X = torch.zeros((2, 4))


@pytest.mark.parametrize(
    ("model", "names", "loss", "budget", "error", "says"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), None, "cross_entropy", BUDGETS["points"],
         UnsupportedModelError, "no ReLU"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU()), None, "cross_entropy",
         BUDGETS["points"], UnsupportedModelError, "no Linear"),
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), None, "cross_entropy",
         BUDGETS["points"], UnsupportedModelError, "lie deeper"),
        (nn.Sequential(nn.Linear(4, 2)), ["0.weight"], "cross_entropy", BUDGETS["points"], UnsupportedModelError,
         "trained in part"),
        (nn.Sequential(nn.Linear(4, 2)), ["0.wait"], "cross_entropy", BUDGETS["points"], ArgumentError, "0.wait"),
        (nn.Sequential(nn.Linear(4, 2)), None, "hinge", BUDGETS["points"], ArgumentError, "hinge"),
        (nn.Sequential(nn.Linear(4, 1)), None, "cross_entropy", BUDGETS["points"], UnsupportedModelError,
         "two or more"),
        (nn.Sequential(nn.Linear(4, 2)), None, "binary_cross_entropy", BUDGETS["points"], UnsupportedModelError,
         "one logit"),
        (nn.Sequential(nn.Linear(4, 2)), None, "mse", BUDGETS["labels"], ArgumentError, "label_radius"),
        (nn.Sequential(nn.Linear(4, 2)), None, "cross_entropy", BUDGETS["radius"], ArgumentError, "label_radius"),
        (nn.Sequential(nn.Linear(4, 2)), None, "cross_entropy", PoisoningBudget.substitution(2), ArgumentError, "box"),
        (nn.Sequential(nn.Linear(4, 2)), None, "cross_entropy", PoisoningBudget.removal(2), ArgumentError, "box"),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_refused(
    model: nn.Module, names: list[str] | None, loss: str, budget: PoisoningBudget, error: type[RobustPluginsError],
    says: str,
) -> None:  # fmt: skip
    names = names or [n for n, _ in model.named_parameters()]
    with pytest.raises(error, match=says):
        Zonotope.start(trace(model, X), names, loss, budget)


def test_too_many_parameters_are_refused_before_memory_is_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 2000), nn.ReLU(), nn.Linear(2000, 2))
    with pytest.raises(UnsupportedModelError, match="train fewer"):
        Zonotope.start(trace(model, X), [n for n, _ in model.named_parameters()], "cross_entropy", BUDGETS["points"],
                       memory=2**20)  # fmt: skip


def test_shared_parameters_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))

    model = Twice()
    with pytest.raises(UnsupportedModelError, match="shares"):
        Zonotope.start(trace(model, X), ["layer.weight", "layer.bias"], "cross_entropy", BUDGETS["points"])
