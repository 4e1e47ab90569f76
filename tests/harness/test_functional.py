"""A model run with other tensors: the result is that of a model that has them, and the model keeps its own."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from robust_plugins.harness.functional import called, in_precision


class Shared(nn.Module):
    """A module under two names, a weight that two modules hold, and weights that a hook computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.both = nn.ModuleList([self.first, self.second])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # old, and in use
            self.normed = torch.nn.utils.weight_norm(nn.Linear(3, 3))
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.normed(self.both[1](self.first(x).tanh())) + self.shift


def test_values_are_used_everywhere_and_the_model_keeps_its_own() -> None:
    model, x = Shared().eval(), torch.rand(4, 3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    computed = model.normed.weight
    other = Shared().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        other.shift.add_(1)
        values = {k: v.detach() for k, v in (*other.named_parameters(), *other.named_buffers())}
        assert torch.equal(called(model, values, x), other(x))
        exact = Shared().eval().double()(x.double())
        torch.testing.assert_close(called(model, in_precision(model, torch.float64), x.double()), exact, rtol=0, atol=0)
    assert model.normed.weight is computed
    assert all(isinstance(m.weight, nn.Parameter) for m in (model.first, model.second))
    after = model.state_dict()
    assert all(torch.equal(after[k], v) and after[k].dtype == v.dtype for k, v in before.items())
