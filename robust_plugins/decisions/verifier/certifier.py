"""`interval:branch-and-bound`: a certifier that ends with a proof or a witness, given time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from robust_plugins.balls import L1, L2, Ball
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.certifiers import CROWN, AlphaCROWN
from robust_plugins.decisions.judgement import Decision
from robust_plugins.decisions.verifier.attack import Attack, MarginDescent
from robust_plugins.decisions.verifier.branching import BestChild, Branching
from robust_plugins.decisions.verifier.clock import Clock, Ticks, check_ticks, check_timeout
from robust_plugins.decisions.verifier.domains import DualAscent
from robust_plugins.decisions.verifier.exact import ExactMILP
from robust_plugins.decisions.verifier.gaps import OnLanded, Simplices, pieces
from robust_plugins.decisions.verifier.norms import InBall, NormBall
from robust_plugins.decisions.verifier.proofs import NO_PROOF, Notes, label_property, proof_file
from robust_plugins.decisions.verifier.properties import Halfspaces, Unsafe
from robust_plugins.decisions.verifier.refinement import GrowingTrees, Refinement
from robust_plugins.decisions.verifier.root import Root
from robust_plugins.decisions.verifier.search import Found
from robust_plugins.decisions.verifier.stages import MEMORY, Engine
from robust_plugins.decisions.verifier.verify import decide, prepared
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.component import ERRORS
from robust_plugins.harness.evaluation import NEIGHBOURS, evaluation_error
from robust_plugins.harness.progress import Say, reporting
from robust_plugins.intervals import Interval
from robust_plugins.intervals.methods.ascent import Ascent
from robust_plugins.registry.hookspecs import Backend, Register, hookimpl

EVERY = 2.0
"""Seconds between two lines of progress on one sample."""
STRATEGIES: dict[str, tuple[type, str]] = {
    "attack": (Attack, "MarginDescent"),
    "branching": (Branching, "BestChild"),
    "refinement": (Refinement, "GrowingTrees"),
}


@dataclass(frozen=True, kw_only=True)
class BranchAndBound(Certifier):
    """Complete verification: linear relaxation, attack, then a search over neurons' signs or over boxes of few inputs.

    A sample is CERTIFIED, FALSIFIED with a witness, or TIMEOUT after `timeout` seconds, with the best margin that was
    proved for the whole ball. UNKNOWN is left for margins that are zero up to rounding, and for networks too large for
    `memory`, the bytes for open domains and for the coefficients of one layer. ReLU, LeakyReLU, PReLU, abs, clamps,
    maxima and max pooling are split; where at most 6 inputs vary, ReLU networks of linear layers are decided by halving
    boxes of inputs instead. Other nonlinear layers are bounded, and boxes of up to 24 inputs halved: with more a sample
    stays UNKNOWN where one bound does not suffice. `clock="cpu"` counts the seconds that the process computes, for
    comparisons on busy machines.

    For L2 and L1 balls piecewise linear networks are bounded over the ball itself, by the dual norm of what the inputs'
    coefficients are; where a proof is written, and for other networks, over the smallest box around the ball. Witnesses
    lie in the ball itself. Complete for L-infinity; for other norms a sample may stay UNKNOWN.
    Categories of an `rp.Box` are bounded as their simplex; where the box around its points does not suffice, the boxes
    that it consists of are decided one by one, up to 4096 of them.
    Deterministic by `seed`, but for what time cuts off. `batch` domains are bounded at once, `steps` and `root_steps`
    are those of the ascent on the duals of domains and of the layers' bounds. `progress` reports samples, domains and
    bounds on standard error. `attack`, `branching` and `refinement` are strategies: what is tried first, the neurons to
    split at, and when the layers' bounds are refined; `robust_plugins.decisions.verifier.branching` says how to write
    one.

    `proof` is a file to which a proof is added for every sample that is CERTIFIED, for `robust-plugins check-proof`:
    the tree of neurons' signs with its duals, or the list of boxes of inputs.

    Wang et al. 2021, "Beta-CROWN: efficient bound propagation with per-neuron split constraints for neural network
    robustness verification".
    """

    soundness = "real arithmetic; every bound evaluated with its rounding errors taken off"

    timeout: float = 60.0
    clock: Ticks = "wall"
    seed: int = 0
    memory: int = MEMORY
    progress: bool = False
    attack: Attack = field(default_factory=MarginDescent)
    branching: Branching = field(default_factory=BestChild)
    refinement: Refinement = field(default_factory=GrowingTrees)
    batch: int = 256
    steps: int = 3
    root_steps: int = 20
    proof: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_timeout(self.timeout)
        for name in ("memory", "batch", "steps", "root_steps"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(name, value, accepted="an integer of at least 1", hint="The default is usual.")
        check_ticks(self.clock)
        if not isinstance(self.proof, str | None) or self.proof == "":
            raise ArgumentError("proof", repr(self.proof), accepted="the path of a file", hint="Leave it out for none.")
        for name, (kind, example) in STRATEGIES.items():
            value = getattr(self, name)
            if isinstance(value, type) or not isinstance(value, kind):
                raise ArgumentError(
                    name, repr(value), accepted=f"an object with the methods of {kind.__name__}",
                    hint=f"{example}() is usual; robust_plugins.decisions.verifier.{name} says how to write one.",
                )  # fmt: skip

    def propagate(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        """Gives the bounds of `interval:alpha-crown`: a search is about decisions, and made by the call alone."""
        return AlphaCROWN(steps=self.root_steps, memory=self.memory).propagate(model, x, ball, spec)

    def decide(  # noqa: D102 (inherited)
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        y: Integer[Tensor, " batch"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"],
    ) -> Decision:
        engine = Engine(
            attack=self.attack, branching=self.branching, refinement=self.refinement, batch=self.batch,
            ascent=Ascent(steps=self.root_steps, learning_rate=0.1, decay=0.98),
            leaf_ascent=DualAscent(steps=self.steps), memory=self.memory,
        )  # fmt: skip
        form, box, logits = prepared(model, x), ball.box(x), model(x)
        file = None if self.proof is None else proof_file(self.proof, lambda: form.relu, x.shape[1:])
        # The public call asks for more than zero, by what the model's own rounding may be.
        errors = evaluation_error(model, x, logits, neighbours=NEIGHBOURS)
        least = 4 * self.rounding * logits.abs().amax(1) + 1.1 * ERRORS * errors
        # A proof has to say more than that linear relaxation was enough.
        lower = self._relaxed(model, x, ball, spec) if file is None else x.new_full(spec.shape[:2], -torch.inf)
        enough = (lower > least.unsqueeze(1)).all(1)
        witness = torch.full_like(x, torch.nan)
        stopped, messages = [], []
        with reporting("samples", total=len(x), enabled=self.progress) as (advance, say):
            for i in range(len(x)):
                if int(logits[i].argmax()) != int(y[i]):
                    lower[i] = -torch.inf
                    found = Found("sat", x[i : i + 1], lower[i], 0)
                elif not bool(least[i].isfinite()):
                    lower[i] = torch.nan  # as the logits are, or the weights: an error
                    found = Found("unknown", None, lower[i], 0)
                elif bool(enough[i]):
                    found = Found("unsat", None, lower[i], 0)
                else:
                    unsafe = Unsafe([Halfspaces(row.unsqueeze(0), -least[i : i + 1]) for row in spec[i]], spec.shape[2])
                    around = _single(ball, x[i : i + 1])
                    about = _About(model, y[i : i + 1], x[i : i + 1], around)
                    clock, ends = Clock(self.timeout, self.clock == "cpu"), (box.lower[i : i + 1], box.upper[i : i + 1])
                    notes = Notes()
                    if file is not None:
                        engine = replace(engine, root=notes.root, search=notes.search)
                    elif around is not None:
                        around_all = Interval(*(end.cpu().double() for end in ends))
                        reach = NormBall.of(around, x[i : i + 1], around_all) or Simplices.of(around, around_all)
                        attack: Attack = InBall(around.relaxed, x[i : i + 1], about.broken, self.attack)
                        if around.relaxed is not around:
                            attack = OnLanded(around, attack)
                        root = Root if reach is None else partial(Root, reach=reach)
                        engine = replace(engine, root=root, attack=attack, few=0)
                    search = partial(
                        decide, model, form, unsafe=unsafe, confirm=about.broken, clock=clock, seed=self.seed,
                        engine=engine, tell=_Teller(i, say, clock), notes=None if file is None else notes,
                    )  # fmt: skip
                    found = search(*ends)
                    gaps = around is not None and around.relaxed is not around
                    if around is not None and gaps and file is None and found.answer == "unknown":
                        # Other inputs move in each part, so that groups have no place among them.
                        search = partial(search, engine=replace(engine, root=Root))
                        found = _piecewise(search, around, x[i : i + 1], found)
                    if file is not None and found.answer == "unsat":
                        written = file.add(Interval(*ends), *label_property(int(y[i])), notes, len(unsafe.member))
                        if not written:
                            found = Found("unknown", None, torch.full_like(found.bounds, -torch.inf), 0, NO_PROOF)
                    lower[i] = _down((found.bounds + least[i].double()).to(lower.device), lower.dtype)
                message = found.message
                if found.witness is not None:
                    witness[i] = found.witness[0]
                    message = "an input of the box around the ball is misclassified, and none of the ball was found"
                stopped.append(found.answer == "timeout")
                messages.append(message)
                margin = f", margin above {float(lower[i].min()):.4g}" if found.answer in ("timeout", "unknown") else ""
                say(f"sample {i}: {_WORDS[found.answer]}{margin}, {found.domains} domains")
                advance()
        return Decision(Interval(lower, torch.full_like(lower, torch.inf)), witness, tuple(stopped), tuple(messages))

    def _relaxed(
        self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor
    ) -> Float[Tensor, "batch rows"]:  # fmt: skip
        """Returns what CROWN, rounded outward, proves of all samples at once; minus infinity where it has no bounds.

        Many samples need no more, and a network unfolded over the box of each costs far more than this.
        """
        if x.dtype not in (torch.float32, torch.float64):
            return x.new_full(spec.shape[:2], -torch.inf)
        try:
            found = CROWN(memory=self.memory, outward=True).propagate_lower(model, x, ball, spec)
        except UnsupportedModelError:
            return x.new_full(spec.shape[:2], -torch.inf)
        return found.detach().nan_to_num(nan=-torch.inf)


_WORDS = {"unsat": "certified", "sat": "falsified", "unknown": "unknown", "timeout": "timeout"}


@dataclass(frozen=True, eq=False)
class _About:
    """One sample, and the ball around it where that is no box."""

    model: nn.Module
    y: Tensor
    x: Tensor
    ball: Ball | None

    def broken(self, z: Tensor) -> bool:
        if self.ball is not None and self.ball.relaxed is not self.ball:
            z = self.ball.project(z, self.x)
        inside = self.ball is None or bool(self.ball.contains(z, self.x, tolerance=0).all())
        return inside and bool((self.model(z).argmax(1) != self.y).any())


def _single(ball: Ball, x: Tensor) -> Ball | None:
    """The ball around one of many inputs where that is no box, with one number for its radius."""
    if not isinstance(ball, L1 | L2) and ball.relaxed is ball:
        return None
    return replace(ball, eps=float(ball.radii_for(x)[0]))


def _piecewise(search: Callable[..., Found], ball: Ball, x: Tensor, whole: Found) -> Found:
    """The answer of a set with gaps from those of all boxes that it consists of; `whole` where they are too many."""
    parts = pieces(ball, x)
    if parts is None:
        return whole
    found, bounds = whole, torch.full_like(whole.bounds, torch.inf)
    for part in parts:
        found = search(part.lower, part.upper)
        if found.answer != "unsat":
            return replace(found, bounds=whole.bounds)
        bounds = torch.minimum(bounds, found.bounds)
    return replace(found, bounds=torch.maximum(bounds, whole.bounds))


@dataclass(eq=False)
class _Teller:
    """Says how a search goes on, every few seconds."""

    sample: int
    say: Say
    clock: Clock
    last: float = field(default_factory=perf_counter)

    def __call__(self, domains: int, open_domains: int, bound: float) -> None:
        now = perf_counter()
        if now - self.last >= EVERY:
            self.last = now
            self.say(
                f"sample {self.sample}: {domains} domains, {open_domains} open, bound {bound:.4g}, "
                f"{self.clock.spent:.0f} s"
            )


def _down(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of that precision next below."""
    rounded = value.to(dtype)
    return torch.where(rounded.double() > value, rounded.nextafter(torch.full_like(rounded, -torch.inf)), rounded)


@hookimpl
def register_certifiers(register: Register) -> None:
    """Registers branch and bound, and its judge."""
    register("interval:branch-and-bound", BranchAndBound)
    register("milp:exact", ExactMILP, requires=(Backend("scipy", install="pip install scipy"),))
