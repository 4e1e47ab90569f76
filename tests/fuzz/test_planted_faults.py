"""The fuzzer's own checks see each known kind of fault where what mends it is taken out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.changing import CHANGES
from support.fuzzing.checks import Violation, check_certifier
from support.fuzzing.drawing import Case
from support.fuzzing.reaching import reach
from support.fuzzing.source import Recipe, Written
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.adapters.lirpa import audit, bounded, certifiers, unsound
from robust_plugins.decisions import certifier
from robust_plugins.harness import arguments
from robust_plugins.harness.memory import activation_sizes
from robust_plugins.intervals.network import builder, state, tracing
from robust_plugins.intervals.rules import elementwise
from robust_plugins.intervals.rules.activations import softplus
from robust_plugins.intervals.rules.elementwise import Activation
from robust_plugins.intervals.rules.registry import rules_for

pytestmark = [pytest.mark.full_audits, pytest.mark.filterwarnings("ignore")]  # of backends, about infinities

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
PICKED = """        self.a, self.b = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Linear(6, 2)

    def forward(self, h):
        return self.b(self.a(h).index_select(1, torch.tensor([0, 0, 1, 1, 2, 2])))
"""
SOFT = """        self.net = nn.Sequential(nn.Linear(4, 6), nn.Softplus(PARAMETERS), nn.Linear(6, 2))
        with torch.no_grad():
            self.net[0].weight.mul_(4), self.net[0].bias.mul_(4)

    def forward(self, h):
        return self.net(h)
"""
NARROWED = """        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, h):
        h = 20 * self.a(h)
        return self.b(h.CAST.to(h.dtype))
"""
SEEN = """        self.a = nn.Linear(4, 2)
        self.seen = dict(mean=torch.zeros(4))

    def forward(self, h):
        self.seen["mean"] = 0.9 * self.seen["mean"] + 0.1 * h.mean(0)
        return self.a(h)
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


def test_a_repeated_index(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("lirpa:crown", PICKED, (4,), eps=0.1, seeds=1)
    unaudited(monkeypatch)
    monkeypatch.setattr(unsound, "_KNOWN", tuple(w for w in unsound._KNOWN if w.what != "a repeated index"))
    assert "bounds" in found("lirpa:crown", PICKED, (4,), eps=0.1)


@pytest.mark.slow
def test_an_audit_at_large_radii_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the table, the audit refuses grouped convolutions as patches; at large radii their fault hides."""
    monkeypatch.setattr(unsound, "_grouped", lambda node: False)
    assert not found("lirpa:crown", GROUPED, (2, 5, 5), seeds=3)
    monkeypatch.setattr(audit, "_RADII", (0.5,))
    monkeypatch.setattr(audit, "_RADII_ALONE", ())
    monkeypatch.setattr(audit, "_RADII_OF_DRAWN", ())
    monkeypatch.setattr(certifiers, "refuse_contradicted", lambda *_, **__: None)
    assert "bounds" in found("lirpa:crown", GROUPED, (2, 5, 5))


@pytest.mark.parametrize("threshold", [1.0, 0.1])
def test_a_jump_beside_where_float32_has_it(threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value beyond the jump of a softplus, taken at the next number of another precision."""
    model = SOFT.replace("PARAMETERS", f"threshold={threshold}")
    assert not found("interval:ibp", model, (4,), eps=0.1, seeds=2)
    edge = threshold
    record = replace(softplus(nn.Softplus(threshold=threshold)), image=None, extrema=(edge, edge + 1e-15 * edge))
    soft_as(record, monkeypatch)
    assert {"bounds", "bounds of rows"} & found("interval:ibp", model, (4,), eps=0.1)


def test_a_softplus_that_is_concave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SOFT.replace("PARAMETERS", "beta=-1.0")
    assert not found("interval:crown", model, (4,), seeds=2)
    soft = partial(F.softplus, beta=-1.0)
    soft_as(Activation(f=soft, slope=lambda z: torch.sigmoid(-z)), monkeypatch)
    assert "bounds" in found("interval:crown", model, (4,), eps=0.3)


def soft_as(record: Activation, patch: pytest.MonkeyPatch) -> None:
    """Replaces what the engine knows of every softplus."""
    rules = rules_for(nn.Softplus())
    assert rules is not None
    for rule in fields(rules):
        patch.setattr(rules, rule.name, getattr(rules, rule.name))  # put back afterwards
    patch.setitem(elementwise._RECORDS, nn.Softplus, softplus)
    elementwise.elementwise(nn.Softplus)(lambda layer: record)


@pytest.mark.parametrize("cast", ["to(torch.float16)", "int()", "type_as(torch.zeros(1).half())", "bfloat16()"])
def test_casts_to_narrower_numbers(cast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NARROWED.replace("CAST", cast)
    assert not found("interval:ibp", model, (4,), eps=1e-4, seeds=1)
    monkeypatch.setattr(builder, "check_dtype", lambda *_: None)
    monkeypatch.setattr(tracing, "_check", lambda *_: None)
    assert "bounds" in found("interval:ibp", model, (4,), eps=1e-4)


def test_traces_in_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that keeps what it has seen keeps symbols while it is traced."""
    assert not found("interval:ibp", SEEN, (4,), seeds=1, writes=True)

    @contextmanager
    def disturbed(model: nn.Module) -> Iterator[state.Kept]:
        yield state.Kept(nn.Module())

    monkeypatch.setattr(tracing, "undisturbed", disturbed)
    assert found("interval:ibp", SEEN, (4,), seeds=1, writes=True) & {"leaves a trace", "raises"}


def test_samples_that_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("lirpa:ibp", ACROSS, (4,), batch=True, seeds=1)
    unaudited(monkeypatch)
    monkeypatch.setattr(bounded, "refuse_mixed", lambda *_: None)
    assert "depends on the batch" in found("lirpa:ibp", ACROSS, (4,), batch=True, seeds=2)


def test_inputs_that_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found("interval:ibp", IN_PLACE, (4,), seeds=1)

    def measured(model: nn.Module, x: Tensor) -> list[int]:
        model(x)
        return activation_sizes(model, x)

    monkeypatch.setattr(arguments, "Untouched", lambda model: model)
    monkeypatch.setattr(certifier, "activation_sizes", measured)
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
