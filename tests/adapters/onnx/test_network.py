"""Networks from ONNX files, everywhere that a model is taken; and what is refused, and how."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from support.onnx_files import floats, mlp, write
from torch import nn

import robust_plugins as rp
from robust_plugins.adapters.onnx import read_network
from robust_plugins.adapters.onnx.translation import TRANSLATORS


def test_a_model_is_used_as_any_other(tmp_path: Path) -> None:
    model = rp.load_model(str(mlp(tmp_path / "net.onnx", (4, 16, 16, 3), batch="N")), input_shape=(1, 2, 2), classes=3)
    x = torch.rand(8, 1, 2, 2)
    y = model(x).argmax(1)
    ball = rp.Linf(eps=0.01, clip=(0, 1))
    table = rp.compare(model, x, y, ball, ["art:pgd(steps=3)", "interval:crown"])
    assert not table.crossings
    assert table.clean == 1
    assert rp.certifier("lirpa:ibp")(model, x, y, ball).certified.any()
    explained = rp.explanation_certifier("interval:relaxed")(model, x, y, ball, delta=1.0)
    assert bool(explained.width.isfinite().all())


def test_a_residual_network_is_bounded(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Add", ["h", "x"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    path = write(tmp_path / "res.onnx", nodes, inputs={"x": (1, 2, 4, 4)}, constants={"k": floats(2, 2, 3, 3)})
    model = rp.load_model(str(path))
    x = torch.rand(4, 2, 4, 4)
    found = rp.certifier("interval:crown")(model, x, model(x).argmax(1), rp.Linf(eps=1e-4, clip=(0, 1)))
    assert found.certified.any()
    assert (
        not rp.attack("art:pgd")(model, x, model(x).argmax(1), rp.Linf(eps=1e-4, clip=(0, 1)))
        .success[found.certified]
        .any()
    )


def test_gzipped_files_are_read_and_found(tmp_path: Path) -> None:
    path = mlp(tmp_path / "net.onnx")
    packed = tmp_path / "net.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    plain = rp.load_model(str(path))
    path.unlink()
    for name in (path, packed):  # the competition names its files without the suffix that they have
        model = rp.load_model(str(name), input_shape=(3,), classes=2)
        assert torch.equal(model(torch.ones(2, 3)), plain(torch.ones(2, 3)))


def test_chains_are_plain_sequentials(tmp_path: Path) -> None:
    model = rp.load_model(str(mlp(tmp_path / "net.onnx", (3, 8, 2))))
    assert [type(layer) for layer in model.children()] == [nn.Linear, nn.ReLU, nn.Linear]


def test_double_precision_and_several_inputs_and_outputs(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Relu", ["a"], ["z"])]
    path = write(
        tmp_path / "two.onnx", nodes, inputs={"a": (1, 2), "b": (2, 1)}, outputs=["y", "z"], dtype=TensorProto.DOUBLE
    )
    network = read_network(path)
    assert (network.input_shape, network.output_shape, network.dtype) == ((4,), (6,), torch.float64)
    x = torch.tensor([[1.0, -2, 10, 20]], dtype=torch.float64)
    assert network.model(x).tolist() == [[11, 8, 21, 18, 1, 0]]
    assert network.session(x.numpy()).tolist() == network.model(x)[0].tolist()


def test_an_importer_that_is_wrong_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: a slope of the thousandth part is forgotten."""
    path = write(tmp_path / "one.onnx", [helper.make_node("LeakyRelu", ["x"], ["y"], alpha=1e-3)], inputs={"x": (1, 2)})
    read_network(path)
    monkeypatch.setitem(TRANSLATORS, "LeakyRelu", lambda t, call: t.layer(nn.ReLU(), call.value()))
    with pytest.raises(rp.ComponentError, match="does not compute what onnxruntime computes: the outputs differ"):
        read_network(path)


def relu(inputs: tuple[Any, ...], dtype: int = TensorProto.FLOAT) -> Callable[[Path], Path]:
    def written(path: Path) -> Path:
        return write(path, [helper.make_node("Relu", ["x"], ["y"])], inputs={"x": inputs}, dtype=dtype)

    return written


def content(data: bytes) -> Callable[[Path], Path]:
    def written(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return written


def nodes(*names: str, shape: tuple[int, ...] = (1, 3), **constants: Any) -> Callable[[Path], Path]:
    def written(path: Path) -> Path:
        made = [helper.make_node(name, ["x", *constants], ["y"], name=f"the {name}") for name in names]
        return write(path, made, inputs={"x": shape}, constants=constants)

    return written


def truncated(path: Path) -> Path:
    data = mlp(path, (3, 64, 2)).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def unfinished(path: Path) -> Path:
    return write(path, [helper.make_node("Relu", ["nobody"], ["y"])], inputs={"x": (1, 2)})


def circular(path: Path) -> Path:
    made = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    return write(path, made, inputs={"x": (1, 2)}, outputs=["b"])


def condition(path: Path) -> Path:
    made = [helper.make_node("Greater", ["x", "zero"], ["c"]), helper.make_node("Where", ["c", "x", "zero"], ["y"])]
    return write(path, made, inputs={"x": (1, 2)}, constants={"zero": floats(1)})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (content(b""), "empty"),
        (content(b"\x1f\x8b\x08\x00"), "damaged gzip"),
        (content(b"(" * 10_000_000), "no ONNX model"),
        (content(b"hello"), "no ONNX model"),
        (truncated, "no ONNX model, or a truncated one"),
        (nodes("NonMaxSuppression"), r"node 'the NonMaxSuppression' .NonMaxSuppression.: the operator"),
        (nodes("Conv", shape=(1, 3, 4, 4), k=floats(2, 5, 3, 3)), r"node 'the Conv' .Conv.: an input of shape"),
        (nodes("MatMul", w=floats(5, 2)), r"node 'the MatMul' .MatMul.: shapes .* do not fit together"),
        (nodes("Add", w=floats(5)), r"node 'the Add' .Add.: shapes .* do not fit together"),
        (relu(("N", "M")), r"the shape \['N', 'M'\]"),
        (relu((1, 2), TensorProto.INT64), "of type INT64"),
        (unfinished, "reads 'nobody', which nothing computes"),
        (circular, "which nothing computes"),
        (condition, "Greater.: it depends on the model's input"),
    ],
)
def test_bad_files_are_refused_with_one_error(tmp_path: Path, written: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(rp.ArgumentError, match=message):
        read_network(written(tmp_path / "bad.onnx"))


def test_missing_files_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match="no file"):
        rp.load_model(str(tmp_path / "nothing.onnx"))
    path = str(mlp(tmp_path / "net.onnx", (12, 2)))
    with pytest.raises(rp.ArgumentError, match="`classes` is 10"):
        rp.load_model(path, classes=10)
    with pytest.raises(rp.ArgumentError, match=r"`input_shape` is \(3, 5\)"):
        rp.load_model(path, input_shape=(3, 5), classes=2)
    turned = write(tmp_path / "t.onnx", [helper.make_node("Flatten", ["x"], ["y"])], inputs={"x": (1, 2, 2, 3)})
    with pytest.raises(rp.ArgumentError, match="its channels where the network has them"):
        rp.load_model(str(turned), input_shape=(3, 2, 2), classes=12)
    with pytest.raises(rp.ArgumentError, match="Only ONNX files know them"):
        rp.load_model("mlp")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mlp(tmp_path / "net.onnx")
    for name in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(rp.PluginError, match=rf'need {name}, .* pip install "robust_plugins\[onnx\]"'):
                read_network(path)
