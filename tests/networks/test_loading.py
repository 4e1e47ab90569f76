"""Models from files and import paths: what is read, and what is refused and why."""

from __future__ import annotations

import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import robust_plugins as rp

SHAPE = (1, 4, 4)
BATCH = torch.export.Dim("batch")


class RanError(Exception):
    """Raised by a pickle that was given the chance to run its code."""


class Trap:
    """An object whose pickle runs code when it is read."""

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return spring, ("the pickle's code ran",)


def spring(text: str) -> None:
    raise RanError(text)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model(torch.rand(64, *SHAPE))  # so that batch norm's statistics are no longer the trivial ones
    return model


def load(path: Path | str, **options: Any) -> nn.Module:
    return rp.load_model(str(path), **({"input_shape": SHAPE, "classes": 3} | options))


def export(path: Path, model: nn.Module, x: torch.Tensor, **options: Any) -> Path:
    torch.export.save(torch.export.export(model, (x,), **options), path)
    return path


def script(path: Path, model: nn.Module, *, traced: bool) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and what many people have; tracing dropout warns
        made = torch.jit.trace(model, torch.rand(2, *SHAPE), check_trace=False) if traced else torch.jit.script(model)
        torch.jit.save(made, path)
    return path


def assert_equal(loaded: nn.Module, model: nn.Module) -> None:
    """Same logits for every batch size, through the checks of a public call."""
    for size in (1, 2, 5):
        x = torch.rand(size, *SHAPE)
        model.eval()
        y = model(x).argmax(1)
        table = rp.compare(loaded, x, y, rp.Linf(eps=0.0, clip=(0, 1)), [])
        assert table.clean == 1
        if not hasattr(loaded, "graph") or isinstance(loaded, torch.jit.ScriptModule):
            loaded.eval()
        assert torch.allclose(loaded(x), model(x), atol=1e-6)


@pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
def test_exported_program(tmp_path: Path, name: str) -> None:
    model = net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the name that does not end with .pt2
        path = export(tmp_path / name, model, torch.rand(2, *SHAPE), dynamic_shapes=({0: BATCH},))
    assert_equal(load(path), model)


def test_exported_for_one_batch_size(tmp_path: Path) -> None:
    path = export(tmp_path / "model.pt2", net().eval(), torch.rand(4, *SHAPE))
    with pytest.raises(rp.ArgumentError, match=r"batch size 4 only.*dynamic_shapes"):
        load(path)


@pytest.mark.parametrize(("limits", "named"), [({"min": 3}, "3 to"), ({"max": 64}, "0 to 64")])
def test_exported_for_some_batch_sizes(tmp_path: Path, limits: dict[str, int], named: str) -> None:
    shapes = ({0: torch.export.Dim("batch", **limits)},)
    path = export(tmp_path / "model.pt2", net().eval(), torch.rand(4, *SHAPE), dynamic_shapes=shapes)
    with pytest.raises(rp.ArgumentError, match=f"batch size {named}"):
        load(path)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(16)], ids=["dropout", "batch norm"])
def test_exported_in_training_mode(tmp_path: Path, layer: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 3)).train()
    path = export(tmp_path / "model.pt2", model, torch.rand(4, *SHAPE), dynamic_shapes=({0: BATCH},))
    with pytest.raises(rp.ArgumentError, match=r"in training mode.*model\.eval\(\)"):
        load(path)


def test_exported_for_other_inputs(tmp_path: Path) -> None:
    path = export(tmp_path / "model.pt2", net().eval(), torch.rand(4, *SHAPE), dynamic_shapes=({0: BATCH},))
    with pytest.raises(rp.ArgumentError, match=r"\(1, 4, 4\), where the data have \(1, 8, 8\)"):
        load(path, input_shape=(1, 8, 8))
    with pytest.raises(rp.ArgumentError, match=r"where the data have \(16,\)"):
        load(path, input_shape=(16,))


def test_exported_with_two_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    x = torch.rand(2, 16)
    program = torch.export.export(Two(), (x, x), dynamic_shapes=({0: BATCH}, {0: BATCH}))
    torch.export.save(program, tmp_path / "model.pt2")
    with pytest.raises(rp.ArgumentError, match="a program of 2 inputs"):
        load(tmp_path / "model.pt2")


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_a_pickle_hidden_in_an_export_is_not_run(tmp_path: Path) -> None:
    """torch.export.load reads sample inputs, and weights marked so, with unrestricted pickle."""
    path = export(tmp_path / "model.pt2", net().eval(), torch.rand(2, *SHAPE), dynamic_shapes=({0: BATCH},))
    torch.save(Trap(), tmp_path / "trap")
    trap = (tmp_path / "trap").read_bytes()

    def in_inputs(name: str, content: bytes) -> bytes:
        return trap if name.endswith("sample_inputs/model.pt") else content

    def in_weights(name: str, content: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return trap if name.endswith("weights/weight_0") else content

    for change in (in_inputs, in_weights):
        changed = rewritten(path, tmp_path / f"{change.__name__}.pt2", change)
        with pytest.raises(rp.ArgumentError, match="pickled object"):
            load(changed)
        with pytest.raises(RanError):  # the reason for it
            torch.export.load(changed)


def test_a_damaged_export(tmp_path: Path) -> None:
    path = export(tmp_path / "model.pt2", net().eval(), torch.rand(2, *SHAPE), dynamic_shapes=({0: BATCH},))
    changed = rewritten(path, tmp_path / "changed.pt2", lambda n, c: c[:50] if n.endswith("model.json") else c)
    with pytest.raises(rp.ArgumentError, match="an unreadable program"):
        load(changed)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["model.ts", "model.pt"])
def test_torchscript(tmp_path: Path, name: str, traced: bool) -> None:
    model = net().eval()
    assert_equal(load(script(tmp_path / name, model, traced=traced)), model)


def test_scripted_in_training_mode_is_fine(tmp_path: Path) -> None:
    model = net().train()
    loaded = load(script(tmp_path / "model.ts", model, traced=False))
    assert loaded.training
    assert_equal(loaded, model)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(16)], ids=["dropout", "batch norm"])
def test_traced_in_training_mode(tmp_path: Path, layer: nn.Module) -> None:
    path = script(tmp_path / "model.ts", nn.Sequential(nn.Flatten(), layer, nn.Linear(16, 3)).train(), traced=True)
    with pytest.raises(rp.ArgumentError, match="traced in training mode"):
        load(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("content", [net, Trap])
def test_pickled_models_are_refused(tmp_path: Path, content: Callable[[], object], legacy: bool) -> None:
    torch.save(content(), tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(rp.ArgumentError, match=r"pickled model.*state_dict.*torch\.export\.save"):
        load(tmp_path / "model.pt")
    with pytest.raises(rp.ArgumentError, match=r"pickled model"):
        load("linear", weights=tmp_path / "model.pt")


def test_plain_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(rp.ArgumentError, match="pickled model"):
        load(tmp_path / "model.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "unreadable"), (b"no model", "neither a model nor weights"), (b"PK\x03\x04 cut off", "unreadable")],
)
def test_other_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(rp.ArgumentError, match=message):
        load(tmp_path / "model.pt")
    with pytest.raises(rp.ArgumentError, match="no file"):
        load(tmp_path / "none.pt2")


def test_weights_alone_are_no_model(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(rp.ArgumentError, match="weights without a model"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("form", ["torch", "nested", "legacy", "safetensors"])
def test_weights(tmp_path: Path, form: str) -> None:
    torch.manual_seed(1)
    trained = rp.model("mlp", input_shape=SHAPE, classes=3, widths=(5,))
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(trained.state_dict(), path)
    elif form == "nested":
        torch.save({"state_dict": trained.state_dict(), "epoch": 3}, path)
    else:
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=form == "torch")
    assert_equal(load("mlp(widths=(5,))", weights=path), trained)
    with pytest.raises(rp.ArgumentError, match=r"does not fit the model.*mlp\(widths"):
        load("mlp(widths=(6,))", weights=path)
    with pytest.raises(rp.ArgumentError, match="does not fit the model"):
        load("linear", weights=path)


def test_unreadable_weights(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    torch.save(torch.rand(3), tmp_path / "weights.pt")
    for name, message in (("weights.safetensors", "unreadable"), ("weights.pt", "holding a Tensor")):
        with pytest.raises(rp.ArgumentError, match=message):
            load("linear", weights=tmp_path / name)
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(rp.ArgumentError, match="no file"):
            load("linear", weights=tmp_path / name)


@pytest.fixture
def mine() -> Iterator[ModuleType]:
    module: Any = ModuleType("mine_for_test")
    module.ready = net()
    module.build = lambda input_shape, classes, width=4: nn.Sequential(
        nn.Flatten(), nn.Linear(16, width), nn.Linear(width, classes)
    )
    module.plain = net
    module.wrong = lambda: "no model"
    module.number = 3
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_import_paths(mine: Any) -> None:
    assert load("mine_for_test:ready") is mine.ready
    assert load("mine_for_test:build(width=6)")[1].out_features == 6  # type: ignore[index]
    assert len(load("mine_for_test:plain")) == 6  # type: ignore[arg-type]
    assert load("torch.nn:Linear(in_features=2, out_features=3)").in_features == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere_at_all:build", "No module named 'nowhere_at_all'"),
        ("mine_for_test:none", "no attribute 'none'"),
        ("mine_for_test:build(depth=3)", "unexpected keyword argument 'depth'"),
        ("mine_for_test:ready(width=3)", "takes no parameters"),
        ("mine_for_test:number", "an int"),
        ("torch.nn:Linear", "missing a required argument: 'in_features'"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_bad_import_paths(path: str, message: str) -> None:
    with pytest.raises(rp.ArgumentError, match=message):
        load(path)


@pytest.mark.usefixtures("mine")
def test_a_factory_must_return_a_model() -> None:
    with pytest.raises(rp.PluginError, match=r"no torch\.nn\.Module"):
        load("mine_for_test:wrong")


def test_files_without_a_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path / "mine", net().eval(), traced=False)
    assert isinstance(load("mine"), torch.jit.ScriptModule)
    script(tmp_path / "mlp", net().eval(), traced=False)
    assert isinstance(load("mlp"), nn.Sequential)  # the zoo comes first


def test_names_of_plugins_come_before_import_paths() -> None:
    class Plugin:
        @rp.hookimpl
        def register_models(self, register: Any) -> None:
            register("mylab:net", lambda input_shape, classes: net())

    rp.register(Plugin(), "mylab")
    try:
        assert len(load("mylab:net")) == 6  # type: ignore[arg-type]
        with pytest.raises(rp.UnknownNameError, match="'mylab:net'"):
            load("mylab:nets")
    finally:
        rp.unregister("mylab")


def test_an_exported_program_is_attacked_and_certified_as_its_model(tmp_path: Path) -> None:
    model = net().eval()
    path = export(tmp_path / "model.pt2", model, torch.rand(2, *SHAPE), dynamic_shapes=({0: BATCH},))
    x, ball = torch.rand(6, *SHAPE), rp.Linf(eps=0.02, clip=(0, 1))
    y = model(x).argmax(1)
    loaded = load(path)
    for name in ("lirpa:ibp", "lirpa:crown"):
        expected, found = (rp.certifier(name)(m, x, y, ball) for m in (model, loaded))
        assert found.verdicts == expected.verdicts
        assert torch.allclose(found.margin, expected.margin, atol=1e-5)
    expected_attack, found_attack = (rp.attack("art:pgd")(m, x, y, ball, seed=0) for m in (model, loaded))
    assert torch.allclose(found_attack.x_adv, expected_attack.x_adv, atol=1e-5)


def test_a_folder_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(rp.ArgumentError, match=r"a folder; accepted: .* Name the file in it"):
        rp.load_model(str(tmp_path), input_shape=(2,), classes=2)
    (tmp_path / "linear").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(rp.load_model("linear", input_shape=(2,), classes=2), nn.Module)
