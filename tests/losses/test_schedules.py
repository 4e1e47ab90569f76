"""The schedules of the mixed loss: counted batches, radii, weights, and what is warned about."""

from __future__ import annotations

import pytest
from support.by_hand import BALL, fixed, mixed_ibp, network, samples

import robust_plugins as rp


def test_batches_are_counted_where_their_number_is_not_given() -> None:
    loss, seen = mixed_ibp(schedule=rp.Ramp(start=0, end=4, shape="linear")), []
    for epoch in range(3):
        for batch in range(4):
            loss.step(epoch, batch)
            seen.append(loss.epoch)
    assert seen == [0, 0, 0, 0, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]
    loss.step(2, 9)  # a longer epoch does not reach into the next
    assert loss.epoch == 3
    for epoch in (3, 4, 5):  # once an epoch
        loss.step(epoch, 0)
    assert loss.epoch == 5
    loss.step(8, 1)  # resumed: nothing is known of the epoch before
    assert loss.epoch == 8
    with pytest.raises(rp.ArgumentError, match="batches"):
        loss.step(0, 0, 0)


def test_a_loss_that_is_never_stepped_is_warned_about() -> None:
    loss, model, (x, y) = mixed_ibp(schedule=rp.Ramp(start=1, end=3)), network(), samples()
    for _ in range(99):
        loss(model, x, y)
    with pytest.warns(UserWarning, match=r"100 batches without loss.step"):
        loss(model, x, y)
    for batch in range(150):  # and one that is, is not: warnings are errors here
        loss(model, x, y)
        loss.step(0, batch, 150)
    for loss in (mixed_ibp(), rp.recipe("exp-ibp", ball=BALL, epochs=1, schedule=fixed())):  # nor one that stands still
        for _ in range(101):
            loss(model, x, y)


def test_another_worst_case_is_taken_from_then_on() -> None:
    loss, model, (x, y) = mixed_ibp(), network(), samples()
    before = loss(model, x, y).item()
    loss.worst = "art:fgsm"
    assert not loss.certified
    assert loss(model, x, y).item() < before


def test_the_schedule_ramps_eps_and_the_weight_of_the_worst_case() -> None:
    loss = mixed_ibp(schedule=rp.Ramp(start=1, end=3, shape="linear"))
    model, (x, y) = network(), samples()
    seen = []
    for epoch, batch in ((0, 0), (1, 1), (2, 1), (2, 3)):
        loss.step(epoch, batch, 4)
        terms = loss(model, x, y).terms
        seen.append((terms.eps, terms.gamma))
        assert (terms.worst is None) == (terms.gamma == 1)
    assert seen == [(0, 1), *(pytest.approx(pair) for pair in ((0.025, 0.875), (0.075, 0.625), (0.1, 0.5)))]


def test_gamma_by_itself() -> None:
    loss = mixed_ibp(gamma=rp.Ramp(start=0, end=4, shape="linear", first=1, last=0.5))
    model, (x, y) = network(), samples()
    for epoch, gamma in ((0, 1.0), (2, 0.75), (9, 0.5)):
        loss.step(epoch, 0)
        terms = loss(model, x, y).terms
        assert (terms.eps, terms.gamma) == (0.1, gamma)


def test_training_on_bounds_without_a_ramp_warns() -> None:
    for worst in ("interval:ibp", "lirpa:crown-ibp"):
        with pytest.warns(UserWarning, match="collapses"):
            mixed_ibp(worst=worst, schedule=None)
    rp.MixedLoss(worst="art:fgsm", gamma=0.5, ball=BALL)
