"""The fuzzer's own checks see each known kind of fault where what mends it is taken out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.changing import CHANGES
from support.fuzzing.checks import Violation, check_certifier
from support.fuzzing.drawing import Case
from support.fuzzing.reaching import reach
from support.fuzzing.source import Recipe, Written

import robust_plugins as rp
from robust_plugins.adapters.lirpa import bounded, certifiers, unsound
from robust_plugins.harness import arguments
from robust_plugins.intervals.network import tracing

pytestmark = pytest.mark.filterwarnings("ignore")  # of backends, about infinities

HEAD = (
    "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n        torch.manual_seed({seed})\n"
)


def found(
    name: str, model: str, features: tuple[int, ...], *, eps: float = 0.01, seeds: int = 6, **flags: bool
) -> set[str]:
    """The kinds of violations of a certifier on models of this code, in balls around random inputs."""
    return {v.kind for v in _violations(rp.certifier(name), model, features, eps, seeds, frozenset(flags))}


def _violations(
    certifier: rp.Certifier, model: str, features: tuple[int, ...], eps: float, seeds: int, flags: frozenset[str]
) -> Iterator[Violation]:
    for seed in range(seeds):
        code = Written((HEAD + model).format(seed=seed), flags)
        x = torch.rand((3, *features), generator=torch.Generator().manual_seed(seed))
        y = code.model()(x.clone()).argmax(1)
        recipe = Recipe(features, 2, (), ("linear_head", 0), False)
        case = Case(recipe, code, x, y, rp.Linf(eps=eps, clip=(0.0, 1.0)), 2, seed)
        yield from check_certifier("planted", certifier, [(case, reach(case, samples=16, steps=6))]).violations


GROUPED = """        self.net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.ReLU(),
            nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2))

    def forward(self, h):
        return self.net(h)
"""
READ_TWICE = """        self.first = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6))
        self.last = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, h):
        h = self.first(h)
        return self.last(torch.relu(h) + torch.relu(-h))
"""
ACROSS = """        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, h):
        return self.b(torch.softmax(self.a(h), 0))
"""
IN_PLACE = """        self.net = nn.Sequential(nn.LeakyReLU(0.2, inplace=True), nn.Linear(4, 2))

    def forward(self, h):
        return self.net(h.sub_(0.5))
"""


def unaudited(patch: pytest.MonkeyPatch) -> None:
    """Takes out the nets under the tables of auto_LiRPA's faults."""
    patch.setattr(certifiers, "refuse_violated", lambda *_, **__: None)
    patch.setattr(certifiers, "refuse_contradicted", lambda *_, **__: None)


def test_grouped_convolutions_as_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("lirpa:crown", GROUPED, (2, 5, 5), seeds=1)
    unaudited(monkeypatch)
    monkeypatch.setattr(unsound, "_grouped", lambda node: False)
    assert "bounds" in found("lirpa:crown", GROUPED, (2, 5, 5))


def test_bounds_for_the_first_reader_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("lirpa:crown", READ_TWICE, (5,), eps=0.1, seeds=1)
    unaudited(monkeypatch)
    monkeypatch.setattr(certifiers.CROWN, "options", ())
    assert "bounds" in found("lirpa:crown", READ_TWICE, (5,), eps=0.1)


def test_samples_that_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("lirpa:ibp", ACROSS, (4,), batch=True, seeds=1)
    unaudited(monkeypatch)
    monkeypatch.setattr(bounded, "refuse_mixed", lambda *_: None)
    assert "depends on the batch" in found("lirpa:ibp", ACROSS, (4,), batch=True, seeds=2)


def test_inputs_that_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("interval:ibp", IN_PLACE, (4,), seeds=1)
    monkeypatch.setattr(arguments, "Untouched", lambda model: model)
    assert "changes x" in found("interval:ibp", IN_PLACE, (4,), seeds=1)


def test_models_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is kept for the model alone answers for the model as it was."""
    monkeypatch.setattr(tracing, "fingerprint", lambda model: ())
    change = next(change for change in CHANGES if change.name == "attribute")
    model, x = change.make().eval(), torch.rand((3, 2), generator=torch.Generator().manual_seed(1))
    ball, certifier = rp.Linf(eps=0.1, clip=None), rp.certifier("interval:ibp")
    assert certifier.bounds(model, x, ball).contains(model(x), tolerance=1e-6).all()
    change.apply(model, monkeypatch)
    assert not certifier.bounds(model, x, ball).contains(model(x), tolerance=1e-6).all()
