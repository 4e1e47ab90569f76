"""`Plan`: the arguments of abstract gradient training, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.distributed as dist
from torch import nn

from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.box.sample_gradients import Dependence
from robust_plugins.poisoning.box.sums.aggregation import Method
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.poisoning.concrete.clipping import Clip
from robust_plugins.poisoning.concrete.losses import Loss, objective
from robust_plugins.poisoning.concrete.optimizers import SGD, Optimizer

Domain = Literal["box", "zonotope"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The arguments of a training that decide its bounds."""

    model: nn.Module
    budget: PoisoningBudget
    loss: Loss
    optimizer: Optimizer
    clip: Clip | None
    domain: Domain
    relaxation: Dependence | Literal["auto"]
    aggregation: Method
    memory: int
    group: dist.ProcessGroup | None
    rounding: Literal["nearest", "outward"]

    def check(self) -> None:
        """Raises ArgumentError for arguments that do not fit each other."""
        if not isinstance(self.budget, PoisoningBudget):
            raise ArgumentError("budget", repr(self.budget), accepted="an rp.PoisoningBudget",
                                hint="For example rp.PoisoningBudget(points=10, eps=0.1).")  # fmt: skip
        if not isinstance(self.optimizer, Optimizer):
            raise ArgumentError("optimizer", repr(self.optimizer), accepted="rp.SGD, rp.Adam or rp.AdamW",
                                hint="torch's own optimizers have no intervals.")  # fmt: skip
        objective(self.loss).check(self.budget)
        if self.budget.unbounded and self.clip is None:
            raise ArgumentError("clip_gradient", None, accepted="a number above 0, or rp.NormClip, with this budget",
                                hint="Samples without limits have gradients without limits.")  # fmt: skip
        if self.group is not None and self.aggregation != "cvar":
            raise ArgumentError("aggregation", repr(self.aggregation), accepted='"cvar" with a process group',
                                hint="Only sums can be exchanged between processes.")  # fmt: skip
        for name, choices in (
            ("aggregation", get_args(Method)),
            ("domain", get_args(Domain)),
            ("relaxation", ("auto", *get_args(Dependence))),
            ("rounding", ("nearest", "outward")),
        ):
            if getattr(self, name) not in choices:
                raise ArgumentError(name, repr(getattr(self, name)), accepted=" or ".join(map(repr, choices)),
                                    hint="Choose one of them.")  # fmt: skip
        if self.rounding == "outward" and self.relaxation in ("affine", "crown"):
            raise ArgumentError("relaxation", repr(self.relaxation), accepted='"auto" or "none" with outward rounding',
                                hint="Linear relaxation is not rounded outward.")  # fmt: skip
        if self.domain == "zonotope":
            self._check_zonotope()

    def _check_zonotope(self) -> None:
        plain = isinstance(self.optimizer, SGD) and not self.optimizer.momentum
        for name, fine, accepted in (
            ("optimizer", plain, "rp.SGD without momentum"),
            ("clip", self.clip is None, "None"),
            ("budget", self.budget.change == "none", "a budget of moved points and changed labels"),
            ("rounding", self.rounding == "nearest", '"nearest"'),
            ("group", self.group is None, "None"),
        ):
            if not fine:
                said = "clip_gradient" if name == "clip" else name
                raise ArgumentError(said, repr(getattr(self, name)), accepted=f'{accepted} for domain="zonotope"',
                                    hint='domain="box" takes all.')  # fmt: skip

    def described(self) -> dict[str, Any]:
        """Lists what a checkpoint must agree with."""
        return {
            "budget": repr(self.budget),
            "loss": self.loss,
            "optimizer": repr(self.optimizer),
            "clip_gradient": repr(self.clip),
            "domain": self.domain,
            "relaxation": self.relaxation,
            "aggregation": self.aggregation,
            "rounding": self.rounding,
            "processes": 1 if self.group is None else dist.get_world_size(self.group),
        }
