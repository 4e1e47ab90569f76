"""Answers to properties, and counterexamples, exactly."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper
from support.onnx_files import floats, mlp, published, write

import robust_plugins as rp
from robust_plugins.adapters.onnx import OnnxNetwork, read_network
from robust_plugins.adapters.onnx.counterexamples import (
    into,
    read_counterexample,
    replay,
    text_of,
    write_counterexample,
)
from robust_plugins.adapters.onnx.properties import Property, read_property
from robust_plugins.adapters.onnx.verification import verify


def asked(folder: Path, low: str, up: str, *asserts: str, inputs: int = 2, outputs: int = 2) -> Property:
    """A property over the box [low, up] in every input."""
    lines = [f"(declare-const X_{i} Real)\n(assert (and (>= X_{i} {low}) (<= X_{i} {up})))" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(outputs)]
    path = folder / "p.vnnlib"
    path.write_text("\n".join([*lines, *(f"(assert {a})" for a in asserts)]))
    return read_property(path)


def triangle(folder: Path, operator: str = "Relu") -> OnnxNetwork:
    """`y = (|x0 + x1|, x0 - x1)` where the operator is Relu: a network whose range is known."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node(operator, ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "v"], ["y"]),
    ]  # fmt: skip
    constants = {
        "w": np.array([[1, -1, 1, -1], [1, -1, -1, 1]], np.float32),
        "v": np.array([[1, 0], [1, 0], [0, 1], [0, -1]], np.float32),
    }
    return read_network(write(folder / "t.onnx", nodes, inputs={"x": (1, 2)}, constants=constants))


@pytest.mark.parametrize(
    ("asserts", "answer"),
    [
        (["(<= Y_0 -0.001)"], "unsat"), (["(<= Y_0 0.001)"], "sat"), (["(>= Y_0 2.01)"], "unsat"),
        (["(>= Y_0 2.0)"], "sat"), (["(>= Y_0 1.9)", "(>= Y_1 0.2)"], "unsat"),
        (["(or (>= Y_0 2.01) (and (>= Y_1 1.9) (<= Y_0 0.2)))"], "sat"),
        (["(or (>= Y_0 2.01) (and (>= Y_1 1.9) (>= Y_0 0.2)))"], "unsat"),
        (["(<= (+ Y_0 Y_1) -2.0)"], "sat"), (["(<= (+ Y_0 Y_1 (* -1 X_0)) -3.1)"], "unsat"),
        (["(<= (- Y_1 X_0) -0.99)", "(<= X_0 (- 0 X_1))"], "sat"), ([], "sat"), (["(<= 1 0)"], "unsat"),
    ],
)  # fmt: skip
def test_known_answers(tmp_path: Path, asserts: list[str], answer: str) -> None:
    """Over the square [-1, 1]^2, |x0 + x1| + |x0 - x1| <= 2."""
    network, question = triangle(tmp_path), asked(tmp_path, "-1", "1", *asserts)
    found = verify(network, question, timeout=20)
    assert found.answer == answer, found
    if found.witness is not None:
        assert replay(network.session, question, found.witness.x) == found.witness.replay
        assert found.witness.replay.unsafe


def test_boxes_that_no_float_lies_in_are_replayed_exactly(tmp_path: Path) -> None:
    """0.1 is no number of single precision: the witness is written as 0.1, and run at the nearest one."""
    network, question = triangle(tmp_path), asked(tmp_path, "0.1", "0.1", "(>= Y_0 0.2)")
    found = verify(network, question, timeout=5)
    assert found.answer == "sat"
    assert found.witness is not None
    assert found.witness.x == (Fraction(1, 10),) * 2
    path = tmp_path / "found.counterexample"
    write_counterexample(path, found.witness.x, found.witness.replay.outputs)
    assert path.read_text().startswith("((X_0 0.1)\n(X_1 0.1)\n(Y_0 0.2")
    assert read_counterexample(path, 2) == found.witness.x


def test_smooth_networks_are_decided_by_splitting_boxes(tmp_path: Path) -> None:
    network = triangle(tmp_path, "Sigmoid")  # y0 is one, whatever x is
    assert verify(network, asked(tmp_path, "-1", "1", "(>= Y_0 1.01)"), timeout=20).answer == "unsat"
    assert verify(network, asked(tmp_path, "-1", "1", "(>= Y_1 0.7)"), timeout=20).answer == "sat"


def test_layers_that_act_on_rows_of_a_matrix(tmp_path: Path) -> None:
    """An input without a batch axis: `relu(x) 1` is the sum of each row's positive part."""
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    network = read_network(
        write(tmp_path / "r.onnx", nodes, inputs={"x": (2, 2)}, constants={"w": np.ones((2, 1), np.float32)})
    )
    assert verify(network, asked(tmp_path, "-1", "1", "(>= Y_1 2.1)", inputs=4), timeout=20).answer == "unsat"
    assert verify(network, asked(tmp_path, "-1", "1", "(>= (+ Y_0 Y_1) 3.9)", inputs=4), timeout=20).answer == "sat"


def test_random_networks_agree_with_a_grid(tmp_path: Path) -> None:
    """`unsat` is never said of what a fine grid contradicts, and `sat` always has its witness."""
    points = torch.cartesian_prod(*[torch.linspace(-0.5, 0.5, 101)] * 2)
    answers = set()
    for seed in range(6):
        network = read_network(mlp(tmp_path / "n.onnx", (2, 8, 8, 2), seed=seed))
        values = network.model(points)[:, 0].detach()
        for share in (-0.02, 0.02):
            top = float(values.max() + share * (values.max() - values.min()))
            found = verify(network, asked(tmp_path, "-0.5", "0.5", f"(>= Y_0 {top!r})"), timeout=10)
            assert found.answer == ("sat" if share < 0 else "unsat")
            answers.add(found.answer)
    assert answers == {"sat", "unsat"}


def test_time_is_kept(tmp_path: Path) -> None:
    network = read_network(mlp(tmp_path / "n.onnx", (20, 64, 64, 64, 2)))
    reach = float(network.model(3 * torch.rand(500, 20) - 1.5).detach().max())
    found = verify(network, asked(tmp_path, "-1.5", "1.5", f"(>= Y_0 {3 * reach})", inputs=20), timeout=0.5)
    assert found.answer in ("timeout", "unknown")


def test_sizes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match=r"of 3 inputs and 2 outputs; accepted: .* 2 inputs and 2 outputs"):
        verify(triangle(tmp_path), asked(tmp_path, "0", "1", inputs=3), timeout=1)


def test_bounds_beyond_the_networks_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match=r"X_0 from -1e\+39 to 1e\+39; accepted: bounds of at most 3.4e\+38"):
        verify(triangle(tmp_path), asked(tmp_path, "-1e39", "1e39"), timeout=1)


def test_replays_are_exact(tmp_path: Path) -> None:
    """By the smallest step outside of the box, or of the unsafe set, an input is no witness."""
    network, question = triangle(tmp_path), asked(tmp_path, "-1", "1", "(>= Y_0 2)")
    corner = (Fraction(1), Fraction(1))
    assert replay(network.session, question, corner).unsafe
    beyond = replay(network.session, question, (1 + Fraction(1, 10**12), Fraction(1)))
    assert not beyond.unsafe
    assert beyond.outside == pytest.approx(1e-12)
    inside = replay(network.session, question, (Fraction(1), 1 - Fraction(1, 10**6)))
    assert not inside.unsafe
    assert inside.excess == pytest.approx(1e-6, rel=0.1)
    assert into(question.cases[0], (Fraction(2), Fraction(-3))) == (1, -1)


def test_numbers_are_written_exactly(tmp_path: Path) -> None:
    for text in ("0.1", "-0.000030517578125", "12.0", "0.0", "-3.5"):
        assert text_of(Fraction(text)) == text
    x = tuple(Fraction(float(v)) for v in floats(20, scale=1e-6))
    write_counterexample(tmp_path / "c", x, [1.0])
    assert read_counterexample(tmp_path / "c", 20) == x
    third = asked(tmp_path, "(/ 1 3)", "(/ 1 3)", inputs=1).cases[0]
    assert into(third, (Fraction(1),)) == (Fraction(1, 3),)  # no decimals lie in this box


def test_bad_counterexamples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.counterexample"
    for text, message in (
        ("", "empty"), ("((X_0 1))", "no finite number for X_1"), ("((X_0 1) (X_1 nan))", "no finite number for X_1"),
        ("((X_0 1) (X_1 2) (X_2 3))", "3 inputs, where 2 are expected"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(rp.ArgumentError, match=message):
            read_counterexample(path, 2)


def test_a_published_counterexample_is_replayed() -> None:
    folder = published() / "acasxu"
    network = read_network(folder / "onnx" / "ACASXU_run2a_1_2_batch_2000.onnx")
    question = read_property(folder / "vnnlib" / "prop_2.vnnlib")
    name = "ACASXU_run2a_1_2_batch_2000_prop_2.counterexample"
    x = read_counterexample(folder / "published" / "alpha_beta_crown" / name, 5)
    assert replay(network.session, question, x).unsafe
