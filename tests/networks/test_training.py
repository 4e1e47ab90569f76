from __future__ import annotations

import pytest
import torch
from torch import nn

import robust_plugins as rp
from robust_plugins.networks import train


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.Linear(32, 2))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_learns() -> None:
    data = rp.dataset("moons")
    model = net()
    train(model, data.x_train, data.y_train, epochs=15, lr=2e-2, seed=0)
    assert (model.eval()(data.x_test).argmax(1) == data.y_test).float().mean() > 0.95


def test_seed_decides_and_torch_is_left_as_found() -> None:
    data = rp.dataset("moons")
    x, y = data.x_train[:100], data.y_train[:100]
    results = []
    for seed in (0, 0, 1):
        model = net()
        before = torch.get_rng_state()
        train(model, x, y, epochs=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_modes_are_kept() -> None:
    model = net().train()
    model[3].eval()  # type: ignore[index]
    with torch.no_grad():  # training needs gradients, wherever it is called
        train(model, torch.rand(20, 2), torch.randint(2, (20,)), epochs=1, seed=0)
    assert [m.training for m in model] == [True, True, True, False, True]  # type: ignore[attr-defined]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("changed", [{"epochs": 0}, {"batch_size": 0}, {"y": torch.full((20,), 2)}])
def test_bad_arguments(changed: dict[str, object]) -> None:
    arguments = {"y": torch.zeros(20, dtype=torch.int64), "epochs": 1, "batch_size": 4} | changed
    model = net()
    before = weights(model)
    with pytest.raises(rp.ArgumentError, match=f"`{next(iter(changed))}`"):
        train(model, torch.rand(20, 2), arguments.pop("y"), seed=0, **arguments)  # type: ignore[arg-type]
    assert torch.equal(weights(model), before)


def test_no_samples() -> None:
    with pytest.raises(rp.ArgumentError, match="`samples`"):
        train(net(), torch.rand(0, 2), torch.zeros(0, dtype=torch.int64), epochs=1, seed=0)


@pytest.mark.usefixtures("unchecked")
def test_inputs_and_labels_of_other_kinds() -> None:
    x, y = torch.rand(20, 2), torch.arange(20) % 2
    expected = net()
    train(expected, x, y, epochs=1, seed=0)
    for inputs, labels in ((x.double().float().double(), y), (x, y.int()), (x, y.unsqueeze(1)), (x, y.bool())):
        model = net()
        train(model, inputs, labels, epochs=1, seed=0)
        assert torch.equal(weights(model), weights(expected))
    train(model := net(), x, y.tolist(), epochs=1, seed=0)
    assert torch.equal(weights(model), weights(expected))
    one = nn.Linear(2, 1)
    with pytest.warns(UserWarning, match='task="binary"'):
        train(one, x, y.float(), epochs=1, seed=0)
    train(one, x, y.float(), epochs=1, seed=0, task="binary")
    train(one, x, torch.linspace(-3, 3, 20), epochs=1, seed=0)
    model = net()
    for inputs, labels, said in (
        ((x * 255).byte(), y, r"x\.float\(\) / 255"), (x.tolist(), y, r"torch\.as_tensor\(x\)"),
        (x, y[:5], "as many labels"), (x, y.float(), r"y\.long\(\)"),
    ):  # fmt: skip
        with pytest.raises(rp.ArgumentError, match=said):
            train(model, inputs, labels, epochs=1, seed=0)
    train(model, torch.as_tensor(x.tolist()), torch.as_tensor(y.numpy()), epochs=1, seed=0)
