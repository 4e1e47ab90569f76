"""`lirpa:ibp`, `lirpa:crown-ibp`, `lirpa:crown` and `lirpa:alpha-crown`: the certifiers of auto_LiRPA."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.adapters.lirpa import compat
from robust_plugins.adapters.lirpa.audit import refuse_contradicted, refuse_violated, rejoined
from robust_plugins.adapters.lirpa.ball import perturbed
from robust_plugins.adapters.lirpa.bounded import Bounded, Failure, Recipe, bounded, trial
from robust_plugins.adapters.lirpa.failures import out_of_memory, unsupported
from robust_plugins.adapters.lirpa.structure import plain, weights_of
from robust_plugins.adapters.lirpa.unsound import refuse_unsound
from robust_plugins.balls import Ball, Linf
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.decisions.trusted import leaving_alone
from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.arguments import check_spec
from robust_plugins.intervals import Interval

# Otherwise a layer is bounded only where its first reader needs it, which is wrong where there is a second one, and
# makes a sample's bounds depend on the others.
_DENSE = ("sparse_intermediate_bounds", False)
_AS_MATRICES = ("conv_mode", "matrix")


@dataclass(frozen=True, kw_only=True)
class LiRPACertifier(Certifier):
    """The four certifiers share conversion, the ball, and errors that name the layer.

    The model is converted once per input shape and dtype, and again when its structure changes; its weights and
    statistics are read at every call. Dropout is the identity, as in evaluation mode. `Linf` balls are bounded as the
    box that the clip range leaves. `L2` and `L1` balls are bounded as what they share with that box, for
    `IBP` and `CROWN-IBP` up to the first linear layer only and not at all behind a layer that comes before it.

    Sound in real arithmetic for the layers that auto_LiRPA supports; those that the installed version is known to
    bound wrongly are refused with UnsupportedModelError. Xu et al. 2020, "Automatic perturbation analysis for scalable
    certified robustness and beyond".
    """

    method: ClassVar[str]
    options: ClassVar[tuple[tuple[str, Any], ...]] = (_DENSE,)
    linear: ClassVar[bool] = True
    """Whether linear bounds are propagated, or intervals alone."""
    centers: ClassVar[int] = 3
    """The inputs around which the bounds of every radius are audited."""

    def import_backend(self) -> None:
        """Imports it with what it lacks in a current torch."""
        compat.load()

    def propagate(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *features"],
        ball: Ball,
        spec: Float[Tensor, "batch rows classes"] | None,
    ) -> Interval:
        """Bounds as `Certifier.propagate` says. Raises PluginError where auto_LiRPA is missing."""
        if isinstance(ball.eps, tuple) and not math.isinf(ball.norm):
            return self._grouped(model, x, ball, spec, ball.eps)
        x = x.detach()
        recipe = Recipe(self.options, fold=math.isinf(ball.norm), convolve=self.linear)
        if not self.linear:
            return self._supported(model, x, ball, spec, recipe)
        matrices = recipe._replace(options=(*self.options, _AS_MATRICES))
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            return self._supported(model, x, ball, spec, matrices)
        # Convolutions are bounded as patches, which some layers around them cannot be; matrices are slower.
        try:
            return self._supported(model, x, ball, spec, recipe)
        except UnsupportedModelError:
            return self._supported(model, x, ball, spec, matrices)

    def _supported(self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, recipe: Recipe) -> Interval:
        converted = bounded(model, x, recipe, ball)
        if spec is not None:
            check_spec(spec, x, converted.classes)
        known = converted.failure(self.method, model)
        if known is not None:
            raise UnsupportedModelError(str(known)) from known.__cause__
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about infinities, which the verdict is about as well
            try:
                patches = self.linear and _AS_MATRICES not in recipe.options
                refuse_unsound(converted, model, self.method, patches=patches)
                refuse_violated(converted, model, x, self.method, self._audited, centers=self.centers)
            except UnsupportedModelError as refusal:
                converted.failures[self.method] = Failure(refusal)
                raise
            try:
                found = self._bounds(converted, model, x, ball, spec)
            except Exception as error:
                tiny = Linf(eps=1e-3, clip=None) if math.isinf(ball.norm) else type(ball)(eps=1e-3, clip=None)

                def attempt(layer: nn.Module, at: Tensor) -> None:
                    self._bounds(trial(layer, at, recipe), layer, at, tiny, None)

                failure = unsupported(error, model, x[:1], attempt, [])
                if isinstance(failure, UnsupportedModelError) and self._fails(converted, model, x, tiny):
                    converted.failures[self.method] = Failure(failure, weights_of(model))
                raise failure from error
        if self.linear and not torch.is_grad_enabled():
            try:
                refuse_contradicted(converted, model, x, ball, spec, found, self.method)
            except UnsupportedModelError as refusal:
                converted.failures[self.method] = Failure(refusal)
                raise
        return rejoined(converted, model, x, spec, found)

    def _fails(self, converted: Bounded, model: nn.Module, x: Tensor, tiny: Ball) -> bool:
        """Whether the model cannot be bounded at all, rather than on one ball or with one specification."""
        try:
            self._bounds(converted, model, x[: converted.samples or 1], tiny, None)
        except Exception as error:
            return not out_of_memory(error)
        return False

    def _audited(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        """The bounds that are compared with points."""
        return self._bounds(converted, model, x, ball, spec)

    @abstractmethod
    def _bounds(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        """The bounds from auto_LiRPA, whatever it raises."""

    def _grouped(
        self, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None, eps: tuple[float, ...]
    ) -> Interval:
        """auto_LiRPA has one radius per call for L2 and L1: samples of equal `eps` go together."""
        parts: list[Interval] = []
        order: list[int] = []
        for radius in dict.fromkeys(eps):
            rows = [i for i, e in enumerate(eps) if e == radius]
            same = type(ball)(eps=radius, clip=ball.clip)
            parts.append(self.propagate(model, x[rows], same, None if spec is None else spec[rows]))
            order += rows
        back = torch.tensor(order, device=x.device).argsort()
        return Interval(torch.cat([p.lower for p in parts])[back], torch.cat([p.upper for p in parts])[back])


@leaving_alone(plain)  # auto_LiRPA has a copy of it, and looks at the weights that it is lent
@dataclass(frozen=True, kw_only=True)
class IBP(LiRPACertifier):
    """Interval bound propagation: the box around every layer's values. The fastest, and the loosest.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation", equation 6; the specification is merged
    into the last linear layer.
    """

    method: ClassVar[str] = "IBP"
    options: ClassVar[tuple[tuple[str, Any], ...]] = ()
    linear: ClassVar[bool] = False

    def _bounds(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        with converted.using(model, clear=False) as module:
            lower, upper = module.compute_bounds(x=(perturbed(converted, x, ball),), C=spec, method="IBP")
        return Interval(lower, upper)


@leaving_alone(plain)  # auto_LiRPA has a copy of it, and looks at the weights that it is lent
@dataclass(frozen=True, kw_only=True)
class CROWNIBP(LiRPACertifier):
    """One linear relaxation from the specification back to the input, on IBP's bounds of the layers between.

    Zhang et al. 2020, "Towards stable and efficient training of verifiably robust neural networks".
    """

    method: ClassVar[str] = "CROWN-IBP"

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """A row of coefficients for every logit against every activation."""
        return 6 * itemsize * classes * sum(activations)

    def _bounds(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        rows = _identity(converted, x) if spec is None else spec
        with converted.using(model) as module:
            lower, upper = module.compute_bounds(x=(perturbed(converted, x, ball),), C=rows, method="CROWN-IBP")
        return Interval(lower, upper)


@leaving_alone(plain)  # auto_LiRPA has a copy of it, and looks at the weights that it is lent
@dataclass(frozen=True, kw_only=True)
class CROWN(LiRPACertifier):
    """Linear relaxation of every activation, propagated back from every layer to the input.

    Zhang et al. 2018, "Efficient neural network robustness certification with general activation functions".
    """

    method: ClassVar[str] = "CROWN"

    def bytes_per_sample(self, activations: Sequence[int], classes: int, itemsize: int) -> int:
        """A row of coefficients for every neuron against every earlier activation.

        One layer's rows are alive at a time; where gradients are recorded, all of them.
        """
        pairs, most, before = 0, 0, 0
        for size in [*activations, classes]:
            before = before + size if torch.is_grad_enabled() else max(before, size)
            pairs, most = pairs + size * before, max(most, size * before)
        return 4 * itemsize * (pairs if torch.is_grad_enabled() else most)

    def _bounds(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        rows = _identity(converted, x) if spec is None else spec
        with converted.using(model) as module:
            lower, upper = module.compute_bounds(x=(perturbed(converted, x, ball),), C=rows, method="CROWN")
        return Interval(lower, upper)


@leaving_alone(plain)  # auto_LiRPA has a copy of it, and looks at the weights that it is lent
@dataclass(frozen=True, kw_only=True)
class AlphaCROWN(CROWN):
    """CROWN with the slopes of the activations' lower lines optimised by Adam, for each row on its own.

    `steps` are the iterations and `learning_rate` the first step size. With a specification, the lower bounds of its
    rows are optimised and the upper ones are those of CROWN: proofs need the lower ones, and each side costs as much.
    Without one, both sides of every logit are. The bounds of the layers between are optimised with them.

    Xu et al. 2021, "Fast and complete: enabling complete neural network verification with rapid and massively
    parallel incomplete verifiers".
    """

    steps: int = 20
    learning_rate: float = 0.5

    method: ClassVar[str] = "alpha-CROWN"
    centers: ClassVar[int] = 2
    # Slopes stored for unstable neurons alone fail in 0.3 on several shapes, and save little.
    options: ClassVar[tuple[tuple[str, Any], ...]] = (
        ("sparse_features_alpha", False),
        ("sparse_spec_alpha", False),
        _DENSE,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.steps, int) or isinstance(self.steps, bool) or self.steps < 1:
            raise ArgumentError(
                "steps", self.steps, accepted="an integer of at least 1", hint="For no steps, use lirpa:crown."
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ArgumentError(
                "learning_rate", self.learning_rate, accepted="a finite number > 0", hint="0.5 suits slopes in [0, 1]."
            )

    def _audited(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        return replace(self, steps=min(self.steps, 2))._bounds(converted, model, x, ball, spec)

    def _bounds(self, converted: Bounded, model: nn.Module, x: Tensor, ball: Ball, spec: Tensor | None) -> Interval:
        if not converted.module.optimizable_activations:
            return super()._bounds(converted, model, x, ball, spec)
        classes = _identity(converted, x)
        rows = torch.cat((classes, -classes), 1) if spec is None else spec
        with torch.inference_mode(False), torch.enable_grad(), converted.using(model, frozen=True) as module:
            x, rows = (t.clone() if t.is_inference() else t for t in (x, rows))
            module.set_bound_opts(
                {
                    "optimize_bound_args": {
                        "iteration": self.steps,
                        "lr_alpha": self.learning_rate,
                        "early_stop_patience": self.steps,
                    }
                }
            )
            ranges = (perturbed(converted, x, ball),)
            with contextlib.redirect_stdout(io.StringIO()):  # where every activation is stable, 0.7 prints a warning
                module.compute_bounds(x=ranges, C=rows, method="CROWN-Optimized", bound_upper=False)
        # Once more with the slopes found: differentiable in the weights, and in x's dtype.
        with converted.using(model) as module:
            ranges = (perturbed(converted, x, ball),)
            lower, upper = module.compute_bounds(
                x=ranges, C=rows, method="CROWN", reuse_alpha=True, bound_upper=spec is not None
            )
        if spec is None:
            lower, negated = lower.chunk(2, 1)
            upper = -negated
        return Interval(lower, upper)


def _identity(converted: Bounded, x: Tensor) -> Tensor:
    classes = converted.classes
    return torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
