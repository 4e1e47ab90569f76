"""What surrounds a model: modes of torch, tensors of other layouts, and inputs so large that rounding shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import robust_plugins as rp
from robust_plugins.intervals import trace


class OneMore(TorchFunctionMode):
    """Adds one to every ReLU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func is torch.nn.functional.relu else result


class OneMoreBelow(TorchDispatchMode):
    """The same, below the functions of torch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result + 1 if func is torch.ops.aten.relu.default else result


@pytest.mark.parametrize("mode", [OneMore, OneMoreBelow])
def test_modes_that_may_change_results_are_refused_and_the_advice_helps(mode: Any) -> None:
    model, x, ball = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.rand(2, 3),
        rp.Linf(eps=0.1, clip=None),
    )
    plain, logits = rp.certifier("interval:ibp").bounds(model, x, ball), model(x)
    with mode():
        assert not torch.equal(model(x), logits)
        with pytest.raises(rp.UnsupportedModelError, match=rf"{mode.__name__}.*outside of its with block"):
            rp.certifier("interval:ibp").bounds(model, x, ball)
    assert torch.equal(rp.certifier("interval:ibp").bounds(model, x, ball).lower, plain.lower)


def test_modes_that_change_no_values_are_let_be() -> None:
    model, x, ball = (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)),
        torch.rand(2, 3),
        rp.Linf(eps=0.1, clip=None),
    )
    plain = rp.certifier("interval:crown").bounds(model, x, ball)
    with torch.device("cpu"), FlopCounterMode(display=False):
        assert torch.equal(rp.certifier("interval:crown").bounds(model, x, ball).lower, plain.lower)


class Graph(nn.Module):
    """Mixes features by an adjacency matrix."""

    def __init__(self, adjacency: Tensor, how: str) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.last, self.how = nn.Linear(4, 2), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sparse":
            x = torch.sparse.mm(self.adjacency, x.t()).t()
        elif self.how == "dense":
            x = (self.adjacency @ x.unsqueeze(2)).squeeze(2)
        return self.last(x)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_sparse_tensors_are_refused_by_name_where_they_are_used(layout: str) -> None:
    dense, x, ball = torch.eye(4) + 0.1, torch.rand(2, 4), rp.Linf(eps=0.01, clip=None)
    sparse, y = getattr(dense, layout)(), torch.zeros(2, dtype=torch.long)
    certifier, attack = rp.certifier("interval:ibp"), rp.attack("art:fgsm")
    unused = Graph(sparse, "unused")
    assert certifier.bounds(unused, x, ball).ordered().all()
    with pytest.raises(rp.UnsupportedModelError, match=r"'adjacency', which is sparse.*dense"):
        certifier.bounds(Graph(sparse, "sparse"), x, ball)
    assert len(attack(Graph(sparse, "sparse"), x, y, ball).success) == 2
    assert certifier.bounds(Graph(sparse.to_dense(), "dense"), x, ball).ordered().all()


def test_a_layer_norm_of_large_and_nearly_equal_numbers_is_bounded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)).eval()
    for size in (1e4, 1e5):
        x = size + 0.1 * torch.randn(2, 6)
        found = rp.certifier("interval:crown")(model, x, model(x).argmax(1), rp.Linf(eps=1e-3, clip=None))
        assert all(v in (rp.Verdict.CERTIFIED, rp.Verdict.UNKNOWN) for v in found.verdicts), found.messages


def test_a_wrong_graph_is_found_where_rounding_hides_much() -> None:
    class Overwritten(nn.Module):
        """Keeps a view of what is changed in place later on."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            view = h[:, :3]
            h.mul_(2.0)
            return self.last(h) + view

    with pytest.raises(rp.UnsupportedModelError, match="in place"):
        trace(Overwritten().eval(), 1e4 + 0.1 * torch.randn(2, 6))


@pytest.mark.parametrize("certifier", ["interval:ibp", "interval:crown-ibp", "interval:crown", "interval:alpha-crown"])
def test_scores_that_share_a_large_number_give_no_error(certifier: str) -> None:
    for seed, offset in ((0, 1e8), (1, 1e9), (2, 1e12)):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(4, 8), nn.Softmax(1), nn.Linear(8, 3)).eval(), torch.rand(2, 4)
        with torch.no_grad():
            model[0].bias += offset
            y = model(x).argmax(1)
        found = rp.certifier(certifier)(model, x, y, rp.Linf(eps=0.1, clip=None))
        assert all(v in (rp.Verdict.CERTIFIED, rp.Verdict.UNKNOWN) for v in found.verdicts), found.messages
