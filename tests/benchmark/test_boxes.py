"""Boxes in studies: what is recorded of them, and which other balls hold them, or lie in them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.length import length
from support.studies import data, study
from support.study_records import record

import robust_plugins as rp
from robust_plugins.benchmark.records import ball_fields

pytest.importorskip("pydantic")

from robust_plugins.benchmark.auditing import Rule, audit
from robust_plugins.benchmark.auditing import shapes as shapes_module
from robust_plugins.benchmark.auditing.shapes import Shape
from robust_plugins.benchmark.checking import check
from robust_plugins.benchmark.columns import Columns

FEATURES = 7


def people(count: int = 8) -> rp.Dataset:
    """Two numbers, a whole number, a group of three categories, and one more number."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, FEATURES, generator=generator)
    x[:, 2] = (5 * x[:, 2]).round()
    x[:, 3:6] = torch.nn.functional.one_hot((3 * x[:, 3]).long(), 3)
    y = (2 * x[:, 0]).long()
    return rp.Dataset(name="people", x_train=x, y_train=y, x_test=x, y_test=y, classes=2, clip=None)


CLIP = ([0, 0, 0, 0, 0, 0, 0], [1, 1, 5, 1, 1, 1, 1])


def drawn(rng: random.Random) -> rp.Ball:
    """A ball whose set holds all people above."""
    eps = rng.choice([0.0, 1e-4, 0.05, 0.4, 2.0])
    clip: Any = rng.choice([CLIP, CLIP, (0.0, 5.0), (-1.0, 6.0), None])
    if rng.random() < 0.4:
        plain = None if clip is CLIP else clip
        return rng.choice([rp.Linf, rp.L2, rp.L1])(eps=eps, clip=plain)
    radius = [rng.choice([0.0, 0.01, 0.5, 1.0, 1.5, *([] if clip is None else [math.inf])]) for _ in range(FEATURES)]
    if rng.random() < 0.3:
        radius = rng.choice([0.1, 0.5])
    fixed = rng.sample([0, 1, 6], rng.randrange(2)) + ([3, 4, 5] if rng.random() < 0.2 else [])
    return rp.Box(
        eps=eps, clip=clip, radius=radius, immutable=fixed, integers=[2] if rng.random() < 0.6 else [],
        one_hot=[[3, 4, 5]] if rng.random() < 0.6 else [],
    )  # fmt: skip


def shape(ball: rp.Ball) -> Shape:
    fields = ball_fields(ball, (FEATURES,))
    return Shape(fields["norm"], fields["clip"], fields["box"])


def held(inner: rp.Ball, outer: rp.Ball, z: torch.Tensor, x: torch.Tensor) -> tuple[int, bool]:
    """How many points the radius that is told holds, and whether all of them lie in that ball."""
    distance = inner.distance(z, x).double()
    reach = shape(outer).reach(shape(inner), distance.numpy(), np.full(len(z), inner.largest))
    known = np.isfinite(reach)
    for i in np.flatnonzero(known):
        if not replace(outer, eps=float(reach[i])).contains(z[i : i + 1], x[i : i + 1], tolerance=1e-5).all():
            return int(known.sum()), False
    return int(known.sum()), True


def pairs(seed: int, count: int) -> int:
    """Searches points of drawn balls outside the radius that is told of other ones; returns how many were held."""
    rng, generator, x = random.Random(seed), torch.Generator().manual_seed(seed), people().x_test.double()
    total = 0
    for _ in range(count):
        inner, outer = drawn(rng), drawn(rng)
        if not (isinstance(inner, rp.Box) or isinstance(outer, rp.Box)):
            continue
        for kind in ("uniform", "corner"):
            z = inner.sample(x, 1, generator, draw=kind)[0]
            number, inside = held(inner, outer, z, x)
            assert inside, f"{z.tolist()} of {inner} is not in {outer} with the radius that is told"
            total += number
    return total


def test_points_lie_in_the_balls_that_are_told_to_hold_them() -> None:
    assert pairs(0, length(20, 5000)) > 40


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("hold", lambda self, inner: True),
        ("radius_for", lambda self, inner, reach: reach),
        ("norm", lambda self, name, reach: reach),
    ],
)
def test_a_lie_about_containment_is_found(name: str, lie: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes_module.Sides, name, lie)
    with pytest.raises(AssertionError, match="is not in"):
        pairs(0, 200)


def reach(inner: rp.Ball, outer: rp.Ball, distance: float = 1.0) -> float:
    return float(shape(outer).reach(shape(inner), np.array([distance]), np.array([inner.largest]))[0])


def test_what_is_told_is_no_larger_than_it_must_be() -> None:
    box = rp.Box(eps=1, clip=(0.0, 5.0), radius=[0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    linf = rp.Linf(eps=1.0, clip=(0.0, 5.0))
    assert reach(box, linf) == pytest.approx(0.2)
    assert reach(box, rp.L1(eps=1, clip=None)) == pytest.approx(1.3)
    assert reach(box, rp.L2(eps=1, clip=None)) == pytest.approx(0.25**0.5)
    assert reach(linf, box, 0.3) == pytest.approx(3.0)
    assert reach(rp.Linf(eps=1, clip=None), box) == math.inf  # it leaves the range
    still = replace(box, immutable=(6,))
    assert reach(still, box) == 1.0
    assert reach(box, still) == math.inf
    groups = rp.Box(eps=1, clip=CLIP, radius=0.5, one_hot=[[3, 4, 5]])
    assert reach(groups, rp.L1(eps=1, clip=None)) == pytest.approx(4 * 0.5 + 2)
    assert reach(replace(groups, radius=0.1), groups) == pytest.approx(0.2)
    assert reach(replace(groups, one_hot=()), groups) == math.inf  # between categories
    assert reach(groups, groups, 0.0) > 0  # a group may have changed, which counts nothing in a distance
    assert reach(rp.Box(eps=1, clip=CLIP, radius=1, integers=[2]), rp.Box(eps=1, clip=CLIP, radius=1)) == 1.0
    assert reach(rp.Box(eps=1, clip=CLIP, radius=1), rp.Box(eps=1, clip=CLIP, radius=1, integers=[2])) == math.inf


def rows(inner: rp.Ball, outer: rp.Ball) -> Columns:
    """A proof for one ball and an attack that succeeds in the other."""
    proof = record(verdict="certified", margin=0.5, **ball_fields(outer, (FEATURES,)))
    attack = record(
        kind="attack", component="pgd", verdict="falsified", success=True, prediction=5, margin=-0.1,
        distance=inner.largest, **ball_fields(inner, (FEATURES,)),
    )  # fmt: skip
    return Columns.of(asdict(one) for one in (proof, attack))


def test_an_attack_in_a_box_speaks_against_proofs_for_what_holds_it() -> None:
    box = rp.Box(eps=1.0, clip=CLIP, radius=0.1, integers=[2])
    wide = rp.Box(eps=0.5, clip=CLIP, radius=0.4)
    linf = rp.Linf(eps=0.11, clip=(0.0, 5.0))

    def rules(inner: rp.Ball, outer: rp.Ball) -> list[Rule]:
        return [finding.rule for finding in audit(rows(inner, outer)).violations]

    assert rules(box, linf) == rules(box, wide) == [Rule.INSIDE]
    assert rules(linf, box) == rules(wide, box) == []
    assert rules(box, replace(box, eps=1.5)) == [Rule.RADIUS]
    assert rules(box, replace(box, eps=0.5)) == []


def study_of_people(folder: Path, *, points: bool = False, **box: Any) -> rp.Study:
    """A study of boxes and a ball; with `points` also of a data set that the model is not for."""
    others = [{"name": "points", "source": data(), "samples": 2}] if points else []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(FEATURES, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    boxes = {"norm": "box", "eps": [0.5, 1.0], "radius": [0.02, 0.1, 1.0, 1.0, 1.0, 1.0, 0.1], "clip": CLIP}
    return study(
        folder, models=[{"name": "net", "source": model}],
        data=[{"name": "people", "source": people(), "samples": 8}, *others],
        balls=[boxes | {"one_hot": [[3, 4, 5]], "integers": [2], "data": ["people"]} | box, {"eps": [0.02]}],
        components=[{"use": "rp:margin-pgd(steps=5)"}, {"use": "interval:ibp"}, {"use": "interval:crown"}],
        run={"batch_size": 8, "isolate": False},
    )  # fmt: skip


def test_a_study_of_boxes_is_recorded_audited_and_derived_again(tmp_path: Path) -> None:
    found = study_of_people(tmp_path, immutable=[1])
    ball = rp.Box(
        eps=1.0, clip=CLIP, radius=[0.02, 0.1, 1.0, 1.0, 1.0, 1.0, 0.1], one_hot=[[3, 4, 5]], integers=[2],
        immutable=[1],
    )  # fmt: skip
    outcome = found.run()
    assert (outcome.written, outcome.errors) == (8 + 3 * 8 * 3, 0)
    model, x, y = found.configuration.models[0].source, people().x_test, people().y_test
    proof = rp.certifier("interval:crown")(model, x, y, ball)
    with found.store() as store:
        rows = list(store.records(where={"component": "interval:crown", "norm": "box", "eps": 1.0}))
        assert [r.margin for r in rows] == pytest.approx(proof.margin.tolist(), abs=1e-6)
        assert {r.verdict for r in rows} >= {"certified"}
        assert all(r.ball() == ball for r in rows)
        assert json.loads(rows[0].box)["shape"] == [FEATURES]
        assert all(r.success is not None for r in store.records(where={"kind": "attack", "norm": "box"}))
    assert not audit(found.store_path).violations
    assert found.run().written == 0
    assert study_of_people(tmp_path, immutable=[0]).run().written == 2 * 8 * 3


def test_a_box_that_does_not_fit_is_named_before_anything_runs(tmp_path: Path) -> None:
    def problems(**changes: Any) -> str:
        found = study_of_people(tmp_path, **changes)
        return str(check(found.configuration, found.folder, found.cache, found.store_path))

    # The network is for seven features.
    assert "models.net on points: `x` is of samples of shape (4,)" in problems(points=True)
    short = problems(radius=[0.1, 0.2])
    assert (
        "models.net on people: `ball.radius` is of shape (2,); accepted: one number, or one per feature, (7,)" in short
    )
    assert "accepted: what the ball says of it: a whole number" in problems(integers=[0, 2])
    assert "models.net on people: `x` is between 0 and 4; accepted: values inside" in problems(clip=[0, 1])
