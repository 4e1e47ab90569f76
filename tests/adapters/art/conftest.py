"""The networks that are attacked, and a batch for them."""

from __future__ import annotations

import pytest
import torch
from support.attacked import cnn, mlp
from torch import Tensor, nn

pytest.importorskip("art", reason="ART is not installed")


@pytest.fixture(params=[mlp, cnn], ids=["mlp", "cnn"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    """In training mode, as `nn.Module` comes."""
    built: nn.Module = request.param()
    return built


@pytest.fixture
def x() -> Tensor:
    """Twelve images in [0, 1], some of whose values lie on the ends of the range."""
    noise = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return (1.4 * noise - 0.2).clamp(0, 1)
