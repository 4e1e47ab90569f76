"""The conformance checks of data sets, networks and commands. Each takes what makes one, and says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import click
import torch
from click.testing import CliRunner
from torch import nn

from robust_plugins.data import Dataset

MakeDataset: TypeAlias = Callable[[], Dataset]
MakeModel: TypeAlias = Callable[..., nn.Module]
MakeCommand: TypeAlias = Callable[[], click.Command]

_SHAPES = ((6,), (1, 8, 8), (3, 12, 12))


def is_a_dataset(make: MakeDataset) -> None:
    """Both parts have samples, in float32, of every class in training, with a range that they fill to some extent."""
    data = make()
    assert isinstance(data, Dataset), f"it made {data!r}, which is no rp.Dataset"
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        assert len(x), f"there is no sample for {part}"
        assert x.dtype == torch.float32, f"x_{part} is of {x.dtype}"
        assert y.dtype == torch.int64, f"y_{part} is of {y.dtype}"
        assert x.isfinite().all(), f"x_{part} is not finite"
    assert len(data.y_train.unique()) == data.classes, "a class has no sample for training"
    if data.clip is not None:
        spread = float(data.x_train.max() - data.x_train.min())
        assert spread > 0.1 * (data.clip[1] - data.clip[0]), f"its values span {spread:.3g} of the range {data.clip}"


def is_the_same_every_time(make: MakeDataset) -> None:
    """Made twice, whatever the random states are, it is the same; and random states are left as they were."""
    torch.manual_seed(1)
    first = make()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = make()
    assert torch.equal(state, torch.get_rng_state()), "making it draws from torch's random state"
    for name in ("x_train", "y_train", "x_test", "y_test"):
        assert torch.equal(getattr(first, name), getattr(again, name)), f"{name} differs when it is made again"


def samples_for_testing_are_new(make: MakeDataset) -> None:
    """No test sample is one of training with the same label, unless half of all samples are repeated anyway."""
    data = make()
    known = {x.numpy().tobytes() + bytes([y % 256]) for x, y in zip(data.x_train, data.y_train.tolist(), strict=True)}
    if 2 * len(known) < len(data.x_train):
        return
    shared = sum(
        x.numpy().tobytes() + bytes([y % 256]) in known for x, y in zip(data.x_test, data.y_test.tolist(), strict=True)
    )
    assert shared <= 0.05 * len(data.x_test), f"{shared} of {len(data.x_test)} test samples are in training"


def logits_have_their_shape(make: MakeModel) -> None:
    """Each sample has a finite logit for every class, whatever else is in its batch."""
    tried = 0
    for shape in _SHAPES:
        for classes in (2, 10):
            model = _built(make, shape, classes)
            if model is None:
                continue
            tried += 1
            x = torch.rand(4, *shape)
            with torch.no_grad():
                logits = model.eval()(x)
                alone = torch.cat([model(row.unsqueeze(0)) for row in x])
            assert logits.shape == (4, classes), f"logits of shape {tuple(logits.shape)} for {classes} classes"
            assert logits.isfinite().all()
            torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)
            assert (logits[0] != logits[1]).any(), "two inputs have the same logits"
    assert tried, f"it takes none of the input shapes {_SHAPES}"


def weights_come_from_the_seed(make: MakeModel) -> None:
    """With torch seeded alike the weights are the same, and otherwise others."""
    shape = next(shape for shape in _SHAPES if _built(make, shape, 3) is not None)
    first, again, other = (_built(make, shape, 3, seed=seed) for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    for (name, p), q in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), f"{name} differs for the same seed"
    assert any(not torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


def it_can_be_trained(make: MakeModel) -> None:
    """Gradients reach every parameter that wants one."""
    shape = next(shape for shape in _SHAPES if _built(make, shape, 3) is not None)
    model = _built(make, shape, 3)
    assert model is not None
    nn.functional.cross_entropy(model.train()(torch.rand(5, *shape)), torch.tensor([0, 1, 2, 0, 1])).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, f"no gradient reaches {name}"


def _built(make: MakeModel, shape: tuple[int, ...], classes: int, *, seed: int = 0) -> nn.Module | None:
    """The network for that shape; None where it refuses it, as one for images refuses tables."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make(input_shape=shape, classes=classes)
        except ValueError:
            return None
    assert isinstance(model, nn.Module), f"it made {model!r}, which is no torch.nn.Module"
    return model


def is_a_command_with_help(make: MakeCommand) -> None:
    """It is a click command, says in a sentence what it does, and documents each of its options."""
    command = make()
    assert isinstance(command, click.Command), f"it made {command!r}, which is no click.Command"
    assert command.help, "it has no help: write a docstring"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"its option {parameter.opts[0]} has no help"
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0, f"--help ends with {result.exit_code}: {result.output}"
    result = CliRunner().invoke(command, ["--no-such-option"])
    assert result.exit_code == 2, "a wrong option does not end with the code 2"


dataset_checks = [is_a_dataset, is_the_same_every_time, samples_for_testing_are_new]
"""For `pytest.mark.parametrize("check", dataset_checks)`; each check takes what makes the data set."""
model_checks = [logits_have_their_shape, weights_come_from_the_seed, it_can_be_trained]
"""For `pytest.mark.parametrize("check", model_checks)`; each check takes what makes the network."""
command_checks = [is_a_command_with_help]
"""For `pytest.mark.parametrize("check", command_checks)`; each check takes what makes the command."""
