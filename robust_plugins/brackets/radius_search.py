"""`critical_radius`: for each sample, up to which radius its decision is proved and from which it is broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from robust_plugins.balls import Ball
from robust_plugins.brackets.answers import NO_ANSWER, causes
from robust_plugins.brackets.components import Components, resolved, with_bar
from robust_plugins.brackets.crossing import Crossing, crossings
from robust_plugins.brackets.radii import CriticalRadius, RadiusRow
from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.results import Verdict
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import as_labels, decided
from robust_plugins.harness.batches import Inputs, Labels, as_batch
from robust_plugins.harness.bisection import Bisection
from robust_plugins.harness.call import calling, ordinary
from robust_plugins.harness.evaluation import checked_seed
from robust_plugins.harness.wrappers import Model
from robust_plugins.registry.information import Kind

ROUNDING = 1e-6
"""Relative: how much nearer than a certified radius a witness may lie, by the rounding of its distance."""


def critical_radius(
    component: Components,
    model: Model,
    x: Inputs,
    y: Labels | None,
    ball: Ball,
    *,
    tolerance: float = 0.01,
    calls: int = 20,
    seed: int | None = None,
    progress: bool = False,
) -> CriticalRadius:
    """Bisects, for all samples at once, the radius at which the decision can be changed.

    - `component`: an attack, a certifier, or several, each by its registered name or itself, or a dictionary that
      gives them names of your own. Each makes its own bisection, so that one can contradict another.
    - `x`, `y`: tensors or numpy arrays; or a TensorDataset or a DataLoader of pairs, and None.
    - `ball`: its norm and clip range, and the largest radius to ask for: one, or one per sample.
    - `tolerance`: a sample is done, and is in no further call, when the radii next to its critical one are within this
      part of the larger.
    - `calls`: the most calls of a component. The first is made at the largest radius.
    - `seed`: of all attacks; None draws one, which the result states.

    Returns the bracket of radii, of shape (batch,): `empirical`, the distance of the nearest input that was found to be
    misclassified, inf for none; and `certified`, the largest radius that was proved. Attacks give the first, certifiers
    the second, and those that search for witnesses both. Every radius stated was certified itself, and every distance
    is that of a witness, in `witness`, so both hold for components that succeed at some radius and fail at a larger or
    a smaller one: for these the bracket is wider than it could be, never wrong. A witness nearer than a certified
    radius is a contradiction, in `crossings`.

    Raises ArgumentError for unusable arguments, UnknownNameError for an unknown component.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    >>> radius = rp.critical_radius(["rp:pgd", "interval:ibp"], model, x, y, rp.Linf(eps=1.0, clip=(0, 1)), seed=0)
    >>> 0.49 < radius.certified.item() <= 0.5 <= radius.empirical.item() < 0.51
    True
    """
    if not (isinstance(tolerance, int | float) and 0 < tolerance < 1):
        raise ArgumentError(
            "tolerance", repr(tolerance), accepted="a number above 0 and below 1", hint="0.01 is one per cent."
        )
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 1:
        raise ArgumentError("calls", repr(calls), accepted="an integer of at least 1", hint="20 is enough for most.")
    samples, labels = as_batch(x, y, model)
    named = resolved(component, {Kind.ATTACK: Attack, Kind.CERTIFIER: Certifier})
    if not named:
        raise ArgumentError("component", "an empty list", accepted="attacks or certifiers", hint="Name one.")
    size = min((c.batch_size for _, c in named if c.batch_size is not None), default=None)
    with torch.no_grad(), calling(model, samples, ball) as call:
        module, samples = call.model, call.x.detach()
        _, logits = decided(module, samples, size=size)
        labels = as_labels(ordinary(labels), samples, logits.shape[1])
    right = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    seed = checked_seed(seed)
    rows: list[RadiusRow] = []
    nearest, witness = torch.full_like(logits[:, 0], torch.inf), torch.full_like(samples, torch.nan)
    for name, one in with_bar(named, progress):
        start = perf_counter()
        search = _Search(one, module, samples, labels, ball, right, seed)
        search.run(tolerance, calls)
        rows.append(search.row(name, perf_counter() - start))
        nearer = search.found < nearest
        nearest, witness = torch.where(nearer, search.found, nearest), _where(nearer, search.witness, witness)
    return CriticalRadius.joined(rows, ball=ball, seed=seed, witness=witness, crossings=_crossings(rows, samples))


@dataclass(eq=False)
class _Search:
    """The bisection of one component: a sample's radius is reached where its decision was broken, or was left open."""

    component: Attack | Certifier
    model: nn.Module
    x: Tensor
    y: Tensor
    ball: Ball
    right: Bool[Tensor, " batch"]
    seed: int
    calls: int = 0
    asked: int = 0
    answered: bool = False
    radii: Bisection = field(init=False)
    found: Float[Tensor, " batch"] = field(init=False)
    witness: Tensor = field(init=False)
    verdicts: list[Verdict] = field(init=False)
    messages: list[str] = field(init=False)

    def __post_init__(self) -> None:
        # Radii are numbers of x's dtype, in which the sets are evaluated: what is stated is what was asked.
        self.radii = Bisection(torch.where(self.right, self.ball.radii_for(self.x), 0.0))
        self.found = torch.where(self.right, torch.inf, 0.0).to(self.x)
        self.witness = _where(self.right, torch.full_like(self.x, torch.nan), self.x)
        self.verdicts, self.messages = [Verdict.UNKNOWN] * len(self.x), [""] * len(self.x)

    def run(self, tolerance: float, calls: int) -> None:
        for self.calls in range(calls):
            at, radii = self.radii.next(tolerance * self.radii.high)
            if not len(at):
                return
            self._ask(at, radii)
        self.calls = calls

    def _ask(self, at: Tensor, radii: Tensor) -> None:
        """Moves one end of each sample to the radius at which it was asked, or to a nearer witness."""
        x, y, ball = self.x[at], self.y[at], replace(self.ball, eps=tuple(radii.tolist()))
        self.asked += len(at)
        if isinstance(self.component, Attack):
            result = self.component(self.model, x, y, ball, seed=self.seed)
            held, broken, z = ~result.success, result.success, result.x_adv
            self.answered = True
        else:
            certificate = self.component(self.model, x, y, ball)
            held, z = certificate.certified, certificate.witness
            broken = z.isfinite().flatten(1).all(1)
            for i, sample in enumerate(at.tolist()):
                verdict = certificate.verdicts[i]
                self.answered |= verdict not in NO_ANSWER
                if verdict is not Verdict.CERTIFIED:  # of the smallest radius that was not
                    self.verdicts[sample], self.messages[sample] = verdict, certificate.messages[i]
        distance = torch.where(broken, ball.distance(_where(broken, z, x), x), torch.inf)
        nearer = distance < self.found[at]
        self.witness[at] = _where(nearer, z, self.witness[at])
        self.found[at] = torch.minimum(distance, self.found[at])
        self.radii.answer(at, radii, ~held, known=self.found[at])

    def row(self, name: str, seconds: float) -> RadiusRow:
        attacks = isinstance(self.component, Attack)
        searches = attacks or type(self.component).decide is not Certifier.decide  # type: ignore[union-attr]
        silent = not self.answered and self.asked > 0
        return RadiusRow(
            name, Kind.ATTACK if attacks else Kind.CERTIFIER,
            broken=self.found if searches and not silent else None,
            certified=None if attacks or silent else self.radii.low,
            calls=self.calls, asked=self.asked, seconds=seconds,
            causes=() if attacks else tuple(causes(self.verdicts, self.messages)),
        )  # fmt: skip


def _where(samples: Bool[Tensor, " batch"], these: Tensor, those: Tensor) -> Tensor:
    return torch.where(samples.view(-1, *[1] * (these.dim() - 1)), these, those)


def _crossings(rows: Sequence[RadiusRow], x: Tensor) -> list[Crossing]:
    found: list[Crossing] = []
    largest = x.flatten(1).abs().amax(1).double() if x.numel() else x.new_zeros(len(x)).double()
    for attack in rows:
        for certifier in rows:
            if attack.broken is not None and certifier.certified is not None:
                slack = ROUNDING * certifier.certified.double() + 4 * torch.finfo(x.dtype).eps * largest
                found += crossings(
                    attack.name, certifier.name, "the critical radius", attack.broken, certifier.certified,
                    side="at least", slack=slack,
                )  # fmt: skip
    return found
