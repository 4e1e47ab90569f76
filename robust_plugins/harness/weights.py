"""`Weights`: what a file holds of a network, which is numbers and no code; to be read it needs the network's layers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, of_type
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.harness.wrappers import give_logits, logits_in, unwrapped

PROBES = 8
"""Inputs at which a network must answer as the one that was saved did."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Parameters and buffers of a network, its layers in words, and its answers at a few random inputs."""

    layers: str
    tensors: dict[str, Tensor]
    trained: tuple[str, ...]
    """The parameters that require gradients."""
    probes: Float[Tensor, "probes *features"]
    answers: Float[Tensor, "probes outputs"]

    @classmethod
    def of(cls, model: nn.Module, input_shape: tuple[int, ...]) -> Weights:
        """Those of a network in evaluation mode, for samples of this shape."""
        like = next(model.parameters())
        generator = torch.Generator().manual_seed(0)
        probes = torch.randn((PROBES, *input_shape), generator=generator, dtype=torch.float64).to(like)
        tensors = {name: t.detach() for name, t in _tensors(model).items()}
        trained = tuple(name for name, p in model.named_parameters() if p.requires_grad)
        return cls(layers_of(model), tensors, trained, probes, _answers(model, probes))

    def put_into(self, model: object) -> nn.Module:
        """A copy of `model` with these weights, in evaluation mode.

        Raises ArgumentError where its layers are others, or where it computes something else with these weights.
        """
        if not isinstance(model, nn.Module):
            raise _other(of_type(model))
        found = deepcopy(unwrapped(model)).eval()
        tensors = _tensors(found)
        if layers_of(found) != self.layers or tensors.keys() != self.tensors.keys():
            raise _other("one of other layers")
        with torch.no_grad():
            for name, t in tensors.items():
                kept = self.tensors[name]
                if t.shape != kept.shape or t.dtype != kept.dtype:
                    raise _other(f"one whose {name!r} is {t.dtype} of shape {tuple(t.shape)}")
                t.copy_(kept)
        for name, p in found.named_parameters():
            p.requires_grad_(name in self.trained)
        like = next(found.parameters())
        if logits_in(out := _run(found, self.probes.to(like))) is not out:
            give_logits(found)
        answers, expected = _answers(found, self.probes.to(like)), self.answers.to(like)
        scale = expected.abs().nan_to_num(posinf=0.0).max().clamp(min=1) if expected.numel() else 1.0
        near = 1e4 * torch.finfo(like.dtype).eps * float(scale)  # sums of another order, on another machine
        if answers.shape != expected.shape or not torch.allclose(answers, expected, 0.0, near, equal_nan=True):
            raise _other("one that computes something else with the same weights")
        return found


def layers_of(model: nn.Module) -> str:
    """The layers by their names, kinds and settings."""
    return ";".join(f"{name}={type(m).__name__}({m.extra_repr()})" for name, m in model.named_modules())


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _run(model: nn.Module, x: Tensor) -> object:
    with evaluating(model, seed=0, guarded=False), torch.no_grad():
        return model(x.clone())


def _answers(model: nn.Module, probes: Tensor) -> Tensor:
    found = logits_in(_run(model, probes))
    assert isinstance(found, Tensor)  # training has checked what the model returns
    return found


def _other(what: str) -> ArgumentError:
    return ArgumentError(
        "model", what, accepted="a network like the one that was trained, whose weights do not matter",
        hint="Make it as it was made for training; the file has the weights, and no code.",
    )  # fmt: skip
