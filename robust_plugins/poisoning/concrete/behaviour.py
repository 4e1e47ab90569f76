"""Checks of how a model behaves, without which a certificate of its training would mean nothing, by running it."""

from __future__ import annotations

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError, UnsupportedModelError
from robust_plugins.harness.call import calling
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.harness.wrappers import logits_in, unwrapped

SAMPLES = 8


def check_behaviour(model: nn.Module, x: Float[Tensor, "samples *features"]) -> None:
    """Raises ArgumentError for a model that trains otherwise than it is bounded: layers are in evaluation mode here.

    Raises UnsupportedModelError for outputs that are random, depend on the rest of the batch, or leave traces in
    buffers. `model` is in the modes in which it was given, and may be changed.
    """
    x = x[:SAMPLES]
    modes = [(module, module.training) for module in model.modules()]
    with evaluating(model, seed=0), torch.no_grad():
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        z = logits_in(model(x.clone()))
        for name, buffer in model.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                raise UnsupportedModelError(
                    f"the model writes into its buffer {name!r} in evaluation mode, so that its outputs depend on what "
                    "it has seen before; take that out of forward"
                )
        again, alone = logits_in(model(x.clone())), logits_in(model(x[:1].clone()))
        if not torch.equal(z, again):
            raise UnsupportedModelError("the model gives the same batch other outputs each time, in evaluation mode; "
                                        "take the noise out of forward")  # fmt: skip
        if not _alike(z[:1], alone):
            raise UnsupportedModelError("the outputs for a sample depend on the other samples of its batch; bounds are "
                                        "made for every sample alone")  # fmt: skip
        if not any(training for _, training in modes):
            return
        for module, training in modes:
            module.training = training
        try:
            same = _alike(logits_in(model(x.clone())), z)
        except Exception:  # batch norm wants more than one sample
            same = False
        if not same:
            named = ", ".join(sorted({type(m).__name__ for m, training in modes if training} & _OF_TRAINING))
            raise ArgumentError(
                "model",
                f"in training mode, where its outputs are others{f' ({named})' if named else ''}",
                accepted="one in evaluation mode",
                hint="Poisoned training is bounded in evaluation mode, with fixed statistics and no dropout: call "
                "model.eval(), and train so too.",
            )


def own_copy(model: nn.Module) -> nn.Module:
    """A copy that is trained in the place of the model, without wrappers that compute the same, in the same modes."""
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", type(model).__name__, accepted="a torch.nn.Module",
                            hint="Wrap a function in a small nn.Module.")  # fmt: skip
    like = next(iter(model.parameters()), None)
    if like is None:
        raise ArgumentError("model", "without parameters", accepted="a model to train", hint="Give it layers.")
    modes = [module.training for module in unwrapped(model).modules()]
    with calling(model, like.detach().reshape(1, -1), guarded=False) as call:
        found = deepcopy(call.model)
    for module, training in zip(found.modules(), modes, strict=True):
        module.training = training
    return found


_OF_TRAINING = {
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d",
    "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "RReLU",
}  # fmt: skip


def _alike(a: object, b: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(b.dtype).eps * max(1.0, b.abs().max().item() if b.numel() else 0.0)
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=tolerance)
