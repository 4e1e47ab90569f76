"""Plain training, for models that have no weights yet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from robust_plugins.errors import ArgumentError
from robust_plugins.harness.arguments import check_labels, logits_of


def train(
    model: nn.Module,
    x: Float[Tensor, "batch *features"],
    y: Int[Tensor, " batch"],
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 64,
    seed: int,
) -> None:
    """Trains `model` in place: cross-entropy and Adam on `x` and its classes `y`, reshuffled in every epoch.

    Training mode during the call, the modes as found after it. The order and dropout follow `seed`; torch's random
    state is left as found. Not robust training: it serves the demonstration and the command line. Raises
    ArgumentError for `y` that does not fit `x` or the model, and where nothing could be learnt.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("samples", len(x))):
        if value < 1:
            raise ArgumentError(name, value, accepted="an integer of at least 1", hint="Train on something, once.")
    modes = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            model.eval()
            with torch.no_grad():
                check_labels(y, x, logits_of(model, x[:1]).shape[1])
            model.train()
            optimizer = torch.optim.Adam(model.parameters(), lr=lr)
            for _ in range(epochs):
                for index in torch.randperm(len(x)).to(x.device).split(batch_size):
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x[index]), y[index])
                    loss.backward()
                    optimizer.step()
            optimizer.zero_grad()
        finally:
            for module, training in modes:
                module.training = training
