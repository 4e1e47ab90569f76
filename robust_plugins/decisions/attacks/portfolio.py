"""The strongest of several attacks, sample by sample: `rp.strongest`, and `rp:auto` with a list of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import L1, Ball
from robust_plugins.decisions.attack import EVALUATIONS, Attack, Found
from robust_plugins.decisions.attacks.diagnosis import Diagnosis, diagnosed
from robust_plugins.decisions.attacks.surrogates import averaged, straight_through
from robust_plugins.decisions.cascade import chosen
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.arguments import logits_of
from robust_plugins.harness.memory import activation_sizes
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import build

CROWN = 4096
"""Linear relaxation is asked by itself of networks with at most so many activations; its time grows faster than theirs,
and an attack's does not."""

WHITE_BOX = (
    "rp:margin-pgd(steps=20)",
    "rp:fmn",
    "rp:margin-pgd(steps=50, targets=4)",
    "rp:apgd(steps=75, targets=9)",
)
SPARSE = (*WHITE_BOX[:2], "rp:pdpgd", *WHITE_BOX[2:])
RANDOM = ("rp:margin-pgd(steps=20)", "rp:margin-pgd(steps=50)")
BLACK_BOX = ("rp:square(queries=500)",)
"""The lists of `rp:auto`: by gradients; by gradients on L1; of models that draw at random, where each gradient is an
average; without gradients."""

MARGIN = "rp:margin-pgd"
"""Joins a list of attacks where cross-entropy saturates and none of the list is known to raise the margin."""

SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Strongest(Attack):
    """Several attacks one after the other, each on the samples that those before it have left; the worst input of all.

    - `attacks`: registered names, with parameters where wanted, or attacks themselves, cheap ones first. None chooses
      by the ball, and by the model: one without gradients is attacked by its outputs alone. Attacks that refuse the
      ball, or targets, are passed over, unless all do.
    - `certifier`: asked after the first attack; samples of which it proves that nothing can be found are left to that
      attack alone, which is so held against the proof. `"auto"` is interval propagation, for small networks with linear
      relaxation; where it refuses the model or the ball nothing is left out. None asks nobody.
    - `draws`: evaluations over which a model that draws at random is averaged where gradients are needed; no sample is
      dropped there, for one success is not the next.
    - `surrogates`: where the model's gradients are zero, passes them straight through roundings and casts; where
      cross-entropy saturates, raises the margin instead, in attacks that have a `loss`. What was done is in `notes`.

    `AttackResult.found_by` names the attack of each success.
    """

    attacks: Sequence[str | Attack] | None = None
    certifier: str | Certifier | None = "auto"
    draws: int = 8
    surrogates: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attacks is not None:
            object.__setattr__(self, "attacks", _checked(self.attacks))
        object.__setattr__(self, "_attacks", None if self.attacks is None else _built(self.attacks))
        asked = self.certifier
        if isinstance(asked, str) and asked != "auto":
            asked = build(Kind.CERTIFIER, Certifier, asked)
        if not (asked is None or asked == "auto" or isinstance(asked, Certifier)):
            raise ArgumentError(
                "certifier", repr(asked), accepted="'auto', a registered name, a certifier, or None",
                hint="None asks nobody.",
            )  # fmt: skip
        object.__setattr__(self, "_certifier", asked)
        if not isinstance(self.draws, int) or isinstance(self.draws, bool) or self.draws < 1:
            raise ArgumentError("draws", repr(self.draws), accepted="an integer of at least 1", hint="8 is usual.")
        if not isinstance(self.surrogates, bool):
            raise ArgumentError("surrogates", repr(self.surrogates), accepted="True or False", hint="True is usual.")

    def perturb(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        targeted: bool,
    ) -> Float[Tensor, "batch *features"]:
        return self.find(model, x, y, ball, targeted=targeted).candidates

    def find(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        *,
        targeted: bool,
    ) -> Found:
        run = _Run(model, x, y, ball, targeted)
        if not run.open.any():
            return run.found()
        state = diagnosed(model, x[run.open], y[run.open], targeted=targeted)
        if state.random:
            run.draws()
        given: _Named | None = self.__dict__["_attacks"]
        named = default_attacks(state, ball, surrogates=self.surrogates) if given is None else given
        if self.surrogates and state.saturated:
            named = run.unsaturated(named)
        sighted = self._sighted(model, state, run)
        for number, (name, attack) in enumerate(named):
            if not run.open.any():
                break
            run.attack(name, attack, model if attack.black_box else sighted)
            if number == 0 and len(named) > 1 and not state.random:
                run.certify(self._asked(model, x))
        if run.refused and not run.ran:
            raise run.refused[0]
        return run.found()

    def _sighted(self, model: nn.Module, state: Diagnosis, run: _Run) -> nn.Module:
        """The model whose gradients are followed."""
        if self.surrogates and state.passable:
            run.notes.append(
                f"gradients are zero at {state.flat} of {state.samples} samples: passed straight through roundings"
            )
            model = straight_through(model)
        elif state.blind:
            run.notes.append(
                f"gradients are zero at {state.flat} of {state.samples} samples, and no surrogate is known"
            )
        if state.random and self.draws > 1:
            run.notes.append(f"gradients are averaged over {self.draws} draws of the model")
            model = averaged(model, draws=self.draws)
        return model

    def _asked(self, model: nn.Module, x: Tensor) -> dict[str, Certifier]:
        one: str | Certifier | None = self.__dict__["_certifier"]
        if one is None:
            return {}
        if isinstance(one, Certifier):
            return {str(self.certifier): one}
        small = sum(activation_sizes(model, x[:1])) <= CROWN
        names = ("interval:ibp", "interval:crown") if small else ("interval:ibp",)
        return {name: build(Kind.CERTIFIER, Certifier, name) for name in names}


_Named = tuple[tuple[str, Attack], ...]


def strongest(
    attacks: Sequence[str | Attack], *, certifier: str | Certifier | None = "auto", batch_size: int | None = None
) -> Attack:
    """An attack that gives, for each sample, the worst input that any of `attacks` finds.

    - `attacks`: registered names, with parameters where wanted, or attacks themselves, cheap ones first: each sees only
      the samples that those before it have not broken.
    - `certifier`: asked after the first of them; samples of which it proves that nothing can be found go no further.
      `"auto"` is a cheap one where it takes the model, None asks nobody.
    - `batch_size`: samples that are attacked at a time.

    `rp.strongest(["art:fgsm", "art:pgd(steps=100)"])(model, x, y, ball).found_by` names the attack of each success.
    The registered `rp:auto` is the same attack with a list of its own. Raises ArgumentError for what is no attack,
    UnknownNameError for unknown names.

    >>> model, x, y = torch.nn.Identity(), torch.tensor([[1.0, 0.0], [0.6, 0.4]]), torch.tensor([0, 0])
    >>> rp.strongest(["rp:fgsm", "rp:pgd"])(model, x, y, rp.Linf(eps=0.2, clip=(0, 1)), seed=0).found_by
    ('', 'rp:fgsm')
    """
    return Strongest(attacks=_checked(attacks), certifier=certifier, batch_size=batch_size)


class _Run:
    """The samples of one call on their way through the attacks."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, targeted: bool) -> None:
        self.model, self.x, self.y, self.ball, self.targeted = model, x, y, ball, targeted
        with torch.no_grad():
            self.classes = (logits := logits_of(model, x)).shape[1]
        self.gain = self._gain(logits, y)
        self.random = False
        self.open: Bool[Tensor, " batch"] = ~self._won(logits, y)
        self.best = x.clone()
        self.by = [""] * len(x)
        self.notes: list[str] = []
        self.refused: list[ArgumentError] = []
        self.ran = 0

    def draws(self) -> None:
        """From now on success is one of several evaluations, and no sample is dropped."""
        self.random = True
        self.gain = self._steady_gain(self.x, self.y)
        self.open = torch.ones_like(self.open)

    def attack(self, name: str, attack: Attack, model: nn.Module) -> None:
        at = self.open.nonzero().flatten()
        x, y = self.x[at], self.y[at]
        seed = int(torch.randint(SEEDS, ()))
        # A target's own success is known from the target alone; the label is any other class.
        label, target = ((y + 1) % self.classes, y) if self.targeted else (y, None)
        try:
            result = attack(model, x, label, chosen(self.ball, at), target=target, seed=seed)
        except ArgumentError as error:  # a norm, a target, or a number of classes that this one does not take
            self.refused.append(error)
            return
        self.ran += 1
        if attack.black_box:  # how many queries it took
            self.notes += [f"{name}: {note}" for note in result.notes]
        gain = self._steady_gain(result.x_adv, y) if self.random else self._gain(result.logits, y)
        better = at[gain > self.gain[at]]
        self.best[better] = result.x_adv[gain > self.gain[at]]
        self.gain[better] = gain[gain > self.gain[at]]
        for i in better.tolist():
            self.by[i] = name
        if not self.random:
            self.open[at[result.success]] = False

    def certify(self, certifiers: Mapping[str, Certifier]) -> None:
        for name, certifier in certifiers.items():
            at = self.open.nonzero().flatten()
            if not len(at):
                return
            try:
                proved = self._proved(certifier, at)
            except (ArgumentError, UnsupportedModelError):
                return
            self.open[at[proved]] = False
            if count := int(proved.sum()):
                self.notes.append(
                    f"{count} samples were left to the first attack alone: {name} proves that nothing can be found"
                )

    def unsaturated(self, named: _Named) -> _Named:
        """The same attacks with the margin for their loss where they raise cross-entropy, and one more if none does."""
        switched = tuple((name, _on_the_margin(attack)) for name, attack in named)
        changed = [name for (name, before), (_, after) in zip(named, switched, strict=True) if before is not after]
        if not any(getattr(attack, "loss", None) in ("margin", "dlr") for _, attack in switched):
            switched = (*_built((MARGIN,)), *switched)
            changed.append(f"{MARGIN} was added")
        if changed:
            self.notes.append(f"cross-entropy saturates, so the margin was raised instead: {', '.join(changed)}")
        return switched

    def found(self) -> Found:
        return Found(self.best, tuple(self.by), tuple(self.notes))

    def _proved(self, certifier: Certifier, at: Tensor) -> Tensor:
        x, y, ball = self.x[at], self.y[at], chosen(self.ball, at)
        with torch.no_grad():
            if not self.targeted:
                return certifier(self.model, x, y, ball).certified
            eye = torch.eye(self.classes, dtype=x.dtype, device=x.device)
            ahead = eye - eye[y].unsqueeze(1)  # row j is z_j less the target's logit; its own row is zero
            least = certifier.bounds(self.model, x, ball, ahead).lower
            return (least > 1e-4 * least.abs().amax(1, keepdim=True)).any(1)

    def _steady_gain(self, z: Tensor, y: Tensor) -> Tensor:
        """The least of several evaluations: what looked best once was lucky."""
        with torch.no_grad():
            return torch.stack([self._gain(logits_of(self.model, z), y) for _ in range(EVALUATIONS)]).amin(0)

    def _won(self, logits: Tensor, y: Tensor) -> Tensor:
        hit = logits.argmax(1) == y
        return (hit if self.targeted else ~hit) & ~logits.isnan().any(1)

    def _gain(self, logits: Tensor, y: Tensor) -> Tensor:
        own = y.unsqueeze(1)
        lead = (logits.scatter(1, own, -torch.inf).amax(1, keepdim=True) - logits.gather(1, own)).squeeze(1)
        return (-lead if self.targeted else lead).nan_to_num(nan=-torch.inf)


def default_attacks(state: Diagnosis, ball: Ball, *, surrogates: bool) -> _Named:
    """The list of `rp:auto` for a model in this state, and this ball: cheap ones first."""
    if state.blind and not (surrogates and state.passable):
        return _built(BLACK_BOX)
    if state.random:
        return _built((*RANDOM, *BLACK_BOX))
    return _built((*(SPARSE if isinstance(ball, L1) else WHITE_BOX), *BLACK_BOX))


def _on_the_margin(attack: Attack) -> Attack:
    if getattr(attack, "loss", None) not in ("cross_entropy", "ce"):
        return attack
    return replace(cast(Any, attack), loss="margin")  # type: ignore[no-any-return]


def _checked(attacks: Any) -> tuple[str | Attack, ...]:
    accepted, hint = "a list of registered names and attacks", "For example ['art:fgsm', 'art:pgd']."
    if isinstance(attacks, str | Attack) or not isinstance(attacks, Sequence) or not attacks:
        raise ArgumentError("attacks", repr(attacks), accepted=accepted, hint=hint)
    for attack in attacks:
        if not isinstance(attack, str | Attack):
            raise ArgumentError("attacks", f"holding {attack!r}", accepted=accepted, hint=hint)
    if len(set(map(str, attacks))) < len(attacks):
        raise ArgumentError(
            "attacks", list(map(str, attacks)), accepted="each attack once",
            hint="For restarts, use the attack's own parameter.",
        )  # fmt: skip
    return tuple(attacks)


def _built(attacks: Sequence[str | Attack]) -> _Named:
    return tuple((str(a), a if isinstance(a, Attack) else build(Kind.ATTACK, Attack, a)) for a in attacks)
