"""What labels mean: the task is named or inferred aloud, never silently another one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.by_hand import fixed, network, samples
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.losses.labels import labels_of

BALL = rp.Linf(eps=0.1, clip=(0, 1))
SOURCES = ("art:fgsm", "interval:ibp", "interval:crown")


def _mixed(worst: Any = "interval:ibp", **parameters: Any) -> rp.MixedLoss:
    return rp.MixedLoss(**({"worst": worst, "gamma": 0.5, "ball": BALL, "schedule": fixed()} | parameters))


def _flat(outputs: int, *, flat: bool) -> nn.Module:
    model = network(outputs)
    return nn.Sequential(*model, nn.Flatten(0)) if flat else model


@contextmanager
def _aloud(task: str) -> Iterator[None]:
    """One warning that says what was inferred and how to name it."""
    with pytest.warns(UserWarning, match=rf'taken for those of {task}\. Name task="{task}" to keep it so, or') as found:
        yield
    assert len(found) == 1


@pytest.mark.parametrize("worst", SOURCES)
@pytest.mark.parametrize("flat", [False, True])
def test_zeros_and_ones_for_one_output(worst: str, flat: bool) -> None:
    """The squared error would be another number."""
    model, (x, y) = _flat(1, flat=flat), samples(2)
    expected = _mixed(worst)(model, x, y).item()
    assert expected > 0.5
    for labels in (y.double(), y.float().unsqueeze(1)):
        loss = _mixed(worst)
        with _aloud("binary"):
            assert loss(model, x, labels).item() == expected
        assert loss(model, x, labels).item() == expected  # said once
        assert _mixed(worst, task="binary")(model, x, labels).item() == expected
    for labels in (y.bool(), y.int(), y.unsqueeze(1)):  # nothing else can be meant
        assert _mixed(worst)(model, x, labels).item() == expected
        assert _mixed(worst, task="binary")(model, x, labels).item() == expected
    assert _mixed(worst, task="binary")(network(2), x, y).item() == _mixed(worst)(network(2), x, y).item()


@pytest.mark.parametrize("worst", SOURCES)
def test_one_hot_rows(worst: str) -> None:
    model, (x, y) = network(), samples()
    expected = _mixed(worst)(model, x, y).item()
    rows = F.one_hot(y, 4)
    for labels in (rows, rows.double(), rows.float()):
        with _aloud("classification"):
            assert _mixed(worst)(model, x, labels).item() == expected
        assert _mixed(worst, task="classification")(model, x, labels).item() == expected
    for labels in (y.double(), y.float().unsqueeze(1)):
        assert _mixed(worst, task="classification")(model, x, labels).item() == expected
        with pytest.raises(rp.ArgumentError, match=r'y\.long\(\), or name task="classification"'):
            _mixed(worst)(model, x, labels)
        assert _mixed(worst)(model, x, labels.long()).item() == expected


def _soft(x: Tensor, classes: int) -> Tensor:
    torch.manual_seed(3)
    return (5 * torch.rand(len(x), classes, dtype=x.dtype)).softmax(1)


@pytest.mark.parametrize("worst", SOURCES)
def test_shares_of_classes(worst: str) -> None:
    model, (x, _) = network(), samples()
    shares = _soft(x, 4)
    clean = -(shares * model(x).log_softmax(1)).sum(1).mean().item()
    with _aloud("classification"):
        inferred = _mixed(worst)(model, x, shares)
    named = _mixed(worst, task="classification")(model, x, shares.float())
    for value in (inferred, named):
        assert value.terms.clean.item() == pytest.approx(clean, rel=1e-6)
        assert value.terms.worst.item() > clean
    inferred.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    still = _mixed(worst, ball=rp.Linf(eps=0.0, clip=(0, 1)), task="classification")(model, x, shares)
    assert still.terms.worst.item() == pytest.approx(clean, rel=1e-9)


@pytest.mark.parametrize("worst", SOURCES)
def test_the_share_of_class_1(worst: str) -> None:
    model, (x, y) = network(1), samples(2)
    share = y * 0.9 + 0.05
    expected = F.binary_cross_entropy_with_logits(model(x).squeeze(1), share.double())
    for labels in (share, share.unsqueeze(1)):
        value = _mixed(worst, task="binary")(model, x, labels)
        assert value.terms.clean.item() == pytest.approx(expected.item(), rel=1e-6)
        assert value.terms.worst.item() > value.terms.clean.item()
    with _aloud("regression"):
        _mixed("interval:ibp")(model, x, share)  # they may be numbers as well: said, and how to name it


@given(seed=st.integers(0, 10**6), eps=st.floats(1e-3, 0.5), peak=st.floats(0.1, 20))
@pytest.mark.parametrize("worst", ["interval:ibp", "interval:crown"])
def test_bounds_of_soft_labels_hold_for_every_input_of_the_ball(worst: str, seed: int, eps: float, peak: float) -> None:
    """The loss of the bounds is above the cross-entropy anywhere in the ball, found by sampling and by ascent."""
    _hold(worst, seed, eps, peak)


@pytest.mark.parametrize("worst", ["lirpa:ibp", "lirpa:crown"])
def test_so_do_those_of_auto_lirpa(worst: str) -> None:
    for seed, eps in enumerate((0.01, 0.1, 0.3)):
        _hold(worst, seed, eps, 3.0)


def _hold(worst: str, seed: int, eps: float, peak: float) -> None:
    model, (x, _), ball = network(seed=seed % 50), samples(), rp.Linf(eps=eps, clip=(0, 1))
    generator = torch.Generator().manual_seed(seed)
    shares = (peak * torch.rand(len(x), 4, dtype=x.dtype, generator=generator)).softmax(1)
    with torch.no_grad():
        loss = _mixed(worst, gamma=0.0, ball=ball, task="classification")
        bound = torch.stack([loss(model, x[i : i + 1], shares[i : i + 1]) for i in range(len(x))])

    def cost(z: Tensor) -> Tensor:
        return -(shares * model(z).log_softmax(1)).sum(1)

    points = [*ball.sample(x, 8, generator, draw="corner"), *ball.sample(x, 4, generator), x]
    z = x.clone()
    for _ in range(8):
        z.requires_grad_()
        (slope,) = torch.autograd.grad(cost(z).sum(), z)
        z = ball.project(z.detach() + eps / 3 * slope.sign(), x)
        points.append(z)
    with torch.no_grad():
        assert all(bool((cost(point) <= bound + 1e-9).all()) for point in points)


@pytest.mark.parametrize("name", [info.name for info in rp.recipes()])
def test_every_recipe_takes_soft_labels_or_says_why_not(name: str) -> None:
    model, (x, y) = network(), samples()
    parameters: dict[str, Any] = {} if name == "standard" else {"ball": BALL}
    if "epochs" in next(info.parameters for info in rp.recipes() if info.name == name):
        parameters |= {"epochs": 1}
    if "schedule" in next(info.parameters for info in rp.recipes() if info.name == name):
        parameters |= {"schedule": lambda epoch: 0.5}
    loss = replace(rp.recipe(name, **parameters), task="classification")
    shares = _soft(x, 4)
    if name == "mart":
        with pytest.raises(rp.ArgumentError, match=r"take y\.argmax\(1\), or TRADES"):
            loss(model, x, shares)
        assert math.isfinite(loss(model, x, shares.argmax(1)).item())
        return
    torch.manual_seed(0)
    loss(model, x, shares).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    values = []
    for labels in (y, F.one_hot(y, 4).double() * (1 - 4e-9) + 1e-9):
        torch.manual_seed(7)
        values.append(loss(model, x, labels).item())
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 3])
def test_numbers(outputs: int) -> None:
    """Outside of [0, 1] nothing else can be meant; inside it is said; named it is what it is."""
    model, (x, _) = network(outputs), samples()
    torch.manual_seed(0)
    numbers = torch.rand(6, outputs, dtype=x.dtype)
    numbers[0] = 0.7
    for target in (numbers * 3, numbers - 1):
        value = _mixed()(model, x, target)
        assert value.terms.clean.item() == pytest.approx(F.mse_loss(model(x), target).item())
        assert _mixed(task="regression")(model, x, target).item() == value.item()
    expected = _mixed(task="regression")(model, x, numbers)
    assert expected.terms.clean.item() == pytest.approx(F.mse_loss(model(x), numbers).item())
    with _aloud("regression"):
        assert _mixed()(model, x, numbers).item() == expected.item()
    for target in (torch.zeros(6, outputs), torch.ones(6, outputs), torch.ones(6, outputs).long()):
        value = _mixed(task="regression")(model, x, target)
        assert value.terms.clean.item() == pytest.approx(F.mse_loss(model(x), target.double()).item())


def test_what_was_inferred_stays() -> None:
    """A batch whose numbers happen to be zeros and ones is no change of task, and one that cannot be is an error."""
    model, (x, y) = network(1), samples(2)
    loss = _mixed()
    loss(model, x, y * 3.0)
    assert loss.inferred == "regression"
    assert loss(model, x, y.double()).terms.clean.item() == pytest.approx(
        F.mse_loss(model(x).squeeze(1), y.double()).item()
    )
    loss = _mixed()
    with _aloud("binary"):
        loss(model, x, y.double())
    with pytest.raises(rp.ArgumentError, match="0 and 1") as caught:
        loss(model, x, y * 3.0)
    assert "taken for those of 'binary' in an earlier batch; name the task" in caught.value.__notes__[0]
    assert loss(model, x, y).item() == _mixed()(model, x, y).item()  # classes are classes


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("outputs", "task", "labels", "said"), [
    (4, None, lambda y: torch.tensor([[1.0, 1, 0, 0]] * 6), "Several classes at once"),
    (4, "classification", lambda y: torch.tensor([[1.0, 1, 0, 0]] * 6), "divide shares by their sum"),
    (4, "classification", lambda y: torch.rand(6, 4) - 2, "not negative"),
    (4, "classification", lambda y: torch.rand(6, 3), "rows of 4 shares"),
    (4, "classification", lambda y: y + 0.5, 'name task="regression"'),
    (4, "classification", lambda y: y + 1, "from 0 to 3"),
    (4, "binary", lambda y: y, 'task="classification"'),
    (1, "classification", lambda y: y, 'task="binary"'),
    (1, "binary", lambda y: y * 2.0 - 1, r"\(y \+ 1\) / 2"),
    (1, None, lambda y: y * 2 - 1, "from 0 to 1"),
    (1, "binary", lambda y: torch.rand(6, 3), "one label per sample"),
    (4, "regression", lambda y: y, 'task="classification"'),
    (4, None, lambda y: y[:5], "one label for each of 6"), (4, None, lambda y: y.view(6, 1, 1), "one label for each"),
    (4, None, lambda y: y * 1j, "one label for each"),
])  # fmt: skip
def test_labels_that_do_not_fit(outputs: int, task: Any, labels: Callable[[Tensor], Tensor], said: str) -> None:
    model, (x, y) = network(outputs), samples(min(outputs, 2) if outputs == 1 else 4)
    y = y % 2 if outputs == 1 else y
    with pytest.raises(rp.ArgumentError, match=said):
        _mixed(task=task)(model, x, labels(y))


def test_what_is_said_of_labels_helps() -> None:
    model, one, (x, y) = network(), network(1), samples()
    several = torch.tensor([[1.0, 1, 0, 0]] * 6, dtype=torch.float64)
    _mixed(task="regression")(model, x, several)
    _mixed(task="classification")(model, x, several / several.sum(1, keepdim=True))
    _mixed(task="regression")(one, x, y + 0.5)
    _mixed(task="binary")(one, x, ((y % 2) * 2.0 - 1 + 1) / 2)
    _mixed(task="classification")(model, x, y)
    _mixed(task="binary")(one, x, y % 2)


@given(data=st.data())
def test_no_reading_is_silent_where_there_are_two(data: st.DataObject) -> None:
    """Whatever floating-point labels are: the squared error without a word is for numbers outside of [0, 1] alone."""
    outputs = data.draw(st.integers(1, 4))
    pool = data.draw(st.sampled_from([[0.0, 1.0], [0.0, 0.5, 1.0], [0.05, 0.95], [0.0, 1.0, 2.0], [-1.0, 1.0]]))
    rows = [data.draw(st.lists(st.sampled_from(pool), min_size=outputs, max_size=outputs)) for _ in range(5)]
    y = torch.tensor(rows, dtype=torch.float64)
    try:
        found = labels_of(y, torch.zeros(5, outputs, dtype=torch.float64), None)
    except rp.ArgumentError:
        return
    silent = found.why == ""
    inside = bool(((y >= 0) & (y <= 1)).all())
    if silent:
        assert found.task == "regression"
        assert not inside or (outputs > 1 and not y.any())
    if not inside:
        assert found.task == "regression"
        assert silent


def test_fit_remembers_what_was_inferred(tmp_path: Any) -> None:
    """Else numbers that are zeros and ones in the first batch after resuming would become classes."""
    x, y = samples(2)[0], torch.tensor([0.0, 1, 0, 1, 1, 0]).double()
    batches = [(x, y), (x, y * 5)]

    def run(epochs: int, loss: rp.MixedLoss, order: list[Any]) -> tuple[rp.TrainingRecord, rp.MixedLoss]:
        model = network(1)
        record = rp.fit(model, order, loss, epochs=epochs, checkpoint=tmp_path, progress=False,
                        optimizer=torch.optim.SGD(model.parameters(), lr=0.01))  # fmt: skip
        return record, loss

    loss = rp.recipe("standard")
    loss.inferred = "regression"  # as after an epoch that began with other batches
    run(1, loss, batches)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, resumed = run(2, rp.recipe("standard"), batches)
    assert resumed.inferred == "regression"
    with pytest.raises(rp.ArgumentError, match=r"its loss is .*regression"):
        run(3, replace(rp.recipe("standard"), task="regression"), batches)
