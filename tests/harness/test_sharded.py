"""Models that have parts of their weights, and programs that take one batch size: refused with what to do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import robust_plugins as rp

BALL = rp.Linf(eps=0.01, clip=None)


def _made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_sharded_models_are_refused_with_what_to_do(how: str) -> None:
    x, labels = torch.rand(4, 3), torch.zeros(4, dtype=torch.long)
    if how == "wrapped":
        model: nn.Module = FullyShardedDataParallel(_made(), device_id=torch.device("cpu"))
    else:
        model = fully_shard(_made(), mesh=init_device_mesh("cpu", (1,)))
    for component in (rp.certifier("interval:ibp"), rp.certifier("lirpa:ibp"), rp.attack("art:pgd")):
        with pytest.raises(rp.ArgumentError, match=r"sharded.*full state dict"):
            component(model, x, labels, BALL)
    whole = _made()
    whole.load_state_dict(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)))
    torch.testing.assert_close(whole(x), _made()(x))
    rp.certifier("interval:ibp")(whole, x, labels, BALL)


@pytest.mark.parametrize("name", ["interval:ibp", "lirpa:ibp"])
def test_programs_for_one_batch_size_are_refused_at_others(name: str) -> None:
    def labels(x: torch.Tensor) -> torch.Tensor:
        return _made()(x).argmax(1)

    x = torch.rand(5, 3)
    fixed = torch.export.export(_made(), (torch.rand(4, 3),)).module()
    with pytest.raises(rp.ArgumentError, match=r"exported for other inputs.*dynamic_shapes"):
        rp.certifier(name)(fixed, x, labels(x), BALL)
    free = torch.export.export(_made(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    advised = [_made()] if name == "interval:ibp" else [_made(), free]  # it bounds no exported programs
    for model in advised:
        found = rp.certifier(name)(model, x[:3], labels(x[:3]), BALL)
        assert not {v.value for v in found.verdicts} & {"error", "unsupported"}
