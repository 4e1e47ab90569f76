"""Attacks and certifiers on sets with categories and whole numbers, against every point of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.boxes import MIXED, members, mixed
from torch import nn

import robust_plugins as rp

RADII = (1e-4, 0.3, 1.0)


def _network(seed: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3)).to(dtype)
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= 2.2  # type: ignore[operator]
        model[0].weight[:, 4] *= 0.3  # type: ignore[index]
    return model


def _margins(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    own = logits.gather(1, y[:, None])[:, 0]
    return own - logits.scatter(1, y[:, None], -torch.inf).amax(1)


def _worst(model: nn.Module, x: torch.Tensor, y: torch.Tensor, ball: rp.Box) -> torch.Tensor:
    with torch.no_grad():
        least = []
        for one, label in zip(x, y, strict=True):
            points = members(ball, one[None], grid=41)
            least.append(_margins(model(points), label.expand(len(points))).min())
        return torch.stack(least)


@pytest.fixture(scope="module")
def cases() -> list[tuple[nn.Module, torch.Tensor, torch.Tensor, rp.Box, torch.Tensor]]:
    found = []
    for eps in RADII:
        model, x, ball = _network(0), mixed(6, 3), replace(MIXED, eps=eps)
        y = model(x).argmax(1)
        found.append((model, x, y, ball, _worst(model, x, y, ball)))
    return found


@pytest.mark.parametrize("name", [c.name for c in rp.certifiers()])
def test_no_certifier_promises_what_a_point_of_the_set_breaks(name, cases) -> None:
    for model, x, y, ball, worst in cases:
        found = rp.certifier(name)(model, x, y, ball)
        assert rp.Verdict.ERROR not in found.verdicts
        assert rp.Verdict.UNSUPPORTED not in found.verdicts
        assert (found.margin <= worst + 1e-6).all()
        assert not (found.certified & (worst < 0)).any()
        broken = torch.tensor([v is rp.Verdict.FALSIFIED for v in found.verdicts])
        assert ball.contains(found.witness, x, tolerance=0)[broken].all()
        if name == "interval:branch-and-bound":
            assert torch.equal(broken, worst < 0)
            assert torch.equal(found.certified, worst > 0)


FIXED = ("art:mim", "art:apgd-ce", "art:apgd-dlr", "art:square", "art:auto")
"""The attacks of a library that knows one radius for all features."""
WALKS = {"art:hopskipjump": {"steps": 2, "first_queries": 20}, "art:boundary": {"steps": 20}, "art:zoo": {"steps": 20}}


@pytest.mark.parametrize("name", FIXED)
def test_attacks_that_know_one_radius_alone_refuse_a_box(name, cases) -> None:
    model, x, y, ball, _ = cases[0]
    with pytest.raises(rp.ArgumentError, match=f"a Box, for {name}.*art:pgd or an attack of rp:"):
        rp.attack(name)(model, x, y, ball, seed=0)


NORMED = ("rp:square", "rp:ddn", "rp:cw-l2", "rp:hopskipjump")
"""Attacks of our own that are about norms."""


@pytest.mark.parametrize("name", NORMED)
def test_attacks_about_norms_refuse_a_box(name, cases) -> None:
    model, x, y, ball, _ = cases[0]
    with pytest.raises(rp.ArgumentError, match=r"`ball` is .*accepted: rp\.L"):
        rp.attack(name)(model, x, y, ball, seed=0)


BOXED = [c.name for c in rp.attacks() if c.name.startswith(("art:", "rp:")) and c.name not in (*FIXED, *NORMED)]


@pytest.mark.parametrize("name", BOXED)
def test_attacks_return_points_of_the_set(name, cases) -> None:
    for model, x, y, ball, worst in cases:
        result = rp.attack(name, **WALKS.get(name, {}))(model, x, y, ball, seed=0)
        assert ball.contains(result.x_adv, x, tolerance=0).all()
        reached = _margins(result.logits, y)
        step = (0.1 * ball.eps_for(x)[0, 0] / 40).item()  # of the grid that `worst` is the least on
        assert (reached >= worst - 40 * step).all()


def test_margin_attacks_find_the_worst_points(cases) -> None:
    found, total = 0, 0
    for model, x, y, ball, worst in cases:
        reached = _margins(rp.attack("rp:margin-pgd")(model, x, y, ball, seed=0).logits, y)
        found, total = found + int((reached <= worst + 0.01).sum()), total + len(x)
    assert found >= total - 2


@pytest.mark.parametrize(("name", "least"), [("fmn(steps=30)", 18), ("pdpgd(steps=30)", 18), ("cw-linf", 18)])
def test_the_nearest_point_of_the_set_is_found(name, least) -> None:
    model, x = _network(2), mixed(20, 2)
    y = model(x).argmax(1)
    found = rp.attack(f"rp:{name}")(model, x, y, MIXED, seed=0)
    near = 0
    with torch.no_grad():
        for i in range(len(x)):
            points = members(MIXED, x[i : i + 1], grid=101)
            distance = MIXED.distance(points, x[i : i + 1].expand_as(points))
            closest = distance[model(points).argmax(1) != y[i]].min()
            near += bool(found.success[i] & (found.distance[i] <= closest + 1e-3))
            assert not found.success[i] or found.distance[i] >= closest - 0.02  # of the grid
    assert near >= least, near


@pytest.mark.parametrize("name", ["rp:fmn(steps=20)", "rp:pdpgd(steps=20)", "rp:cw-linf(finest=1e-6)"])
def test_a_box_is_a_linf_ball_in_units_of_the_radii(name) -> None:
    model, x = _network(1), torch.rand((6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, radius = model(x).argmax(1), torch.tensor([2, 0.5, 1, 8, 0.25, 1], dtype=torch.float64)

    class Rescaled(nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return model(z / radius)

    box, ball = rp.Box(eps=1, radius=radius, clip=(0 * radius, radius)), rp.Linf(eps=1, clip=(0, 1))
    attack = rp.attack(name)
    ours, plain = attack(Rescaled(), x * radius, y, box, seed=0), attack(model, x, y, ball, seed=0)
    assert plain.success.any()
    torch.testing.assert_close(ours.distance, plain.distance)


def test_linear_relaxation_uses_the_simplex_of_a_group(cases) -> None:
    """For a linear model the bound is the least value itself; that over the box alone is lower."""
    torch.manual_seed(0)
    model, (_, x, _, ball, _) = nn.Linear(6, 3).double(), cases[2]
    y = model(x).argmax(1)
    worst = _worst(model, x, y, ball)
    for name in ("interval:crown", "interval:crown-ibp", "interval:alpha-crown"):
        torch.testing.assert_close(rp.certifier(name)(model, x, y, ball).margin, worst)
    rounded = rp.certifier("interval:crown(outward=True)")(model, x, y, ball).margin
    assert (rounded < worst - 0.1).any()


def test_sets_in_single_precision_and_of_no_sample() -> None:
    model, x = _network(1, torch.float32), mixed(4, 5, dtype=torch.float32)
    y = model(x).argmax(1)
    radii = replace(MIXED, eps=(0.0, 1e-4, 0.5, 1.0))
    result = rp.attack("rp:margin-pgd")(model, x, y, radii, seed=0)
    assert radii.contains(result.x_adv, x, tolerance=0).all()
    assert torch.equal(result.x_adv[0], x[0])
    proof = rp.certifier("interval:crown")(model, x, y, radii)
    alone = [rp.certifier("interval:crown")(model, x[i : i + 1], y[i : i + 1], radii[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(proof.margin, torch.cat([a.margin for a in alone]))
    assert (proof.margin <= _margins(result.logits, y) + 1e-6).all()
    assert len(rp.attack("rp:margin-pgd")(model, x[:0], y[:0], MIXED).x_adv) == 0
    assert rp.certifier("interval:crown")(model, x[:0], y[:0], MIXED).verdicts == ()


def test_critical_radii_and_comparisons_take_boxes(cases) -> None:
    model, x, y, ball, _ = cases[2]
    table = rp.compare(model, x, y, ball, ["rp:margin-pgd", "interval:crown"], seed=0)
    assert not table.crossings
    assert "Box 1" in str(table)
    assert table.to_dict()["ball"]["eps"] == 1.0
    components = ["rp:margin-pgd", "interval:crown"]
    found = rp.critical_radius(components, model, x[:3], y[:3], replace(ball, eps=2), seed=0, calls=6)
    assert not found.crossings
    broken, certified = found[0], found[1]
    assert broken is not None
    assert certified is not None
    assert (certified <= broken).all()
