"""VNN-LIB: what is read, into which boxes and rows; and what is refused, and how fast."""

from __future__ import annotations

import gzip
import math
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from support.onnx_files import published
from torch import nn

import robust_plugins as rp
from robust_plugins.adapters.onnx.properties import Property, Row, read_property
from robust_plugins.adapters.onnx.properties.rows import box, halfspaces, holds, needs_input
from robust_plugins.decisions.verifier.properties import Unsafe
from robust_plugins.decisions.verifier.verify import at_once, prepared
from robust_plugins.intervals.interval import Interval

DECLARED = "(declare-const X_0 Real)\n(declare-const X_1 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n"
BOX = "(assert (and (>= X_0 -1) (<= X_0 1) (>= X_1 0) (<= X_1 0.1)))"


def read(folder: Path, text: str) -> Property:
    path = folder / "p.vnnlib"
    path.write_text(text)
    return read_property(path)


def row(offset: str, strict: bool = False, **weights: str) -> Row:
    return Row(tuple(sorted((k, Fraction(v)) for k, v in weights.items())), Fraction(offset), strict)


def test_a_box_and_a_conjunction(tmp_path: Path) -> None:
    """Exact numbers, whatever a double would make of them."""
    found = read(
        tmp_path, DECLARED + BOX + "(assert (<= Y_0 0.3)) ; a comment (\n(assert (>= (- Y_0 (* 2 Y_1)) -1e-1))"
    )
    (case,) = found.cases
    assert (found.inputs, found.outputs) == (2, 2)
    assert case.lower == (-1, 0)
    assert case.upper == (1, Fraction(1, 10))
    assert case.unsafe == ((row("-0.3", Y_0="1"), row("-0.1", Y_0="-1", Y_1="2")),)


def test_alternatives_are_grouped_by_their_box(tmp_path: Path) -> None:
    """Boxes inside `or`, times alternatives of outputs in an assert of their own."""
    text = """(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 2) (<= X_0 3) (<= Y_1 5))
                  (and (>= X_0 3) (<= X_0 2))))
        (assert (and (<= X_1 1) (>= X_1 -0.0)))
        (assert (or (<= Y_0 1) (and (>= Y_0 2) (<= Y_1 2))))"""
    first, second = read(tmp_path, DECLARED + text).cases  # of the third the box is empty
    assert (first.lower, first.upper) == ((0, 0), (1, 1))
    low, high, also = row("-1", Y_0="1"), row("2", Y_0="-1"), row("-2", Y_1="1")
    assert first.unsafe == ((low,), (high, also))
    assert second.lower == (2, 0)
    assert second.unsafe == ((row("-5", Y_1="1"), low), (row("-5", Y_1="1"), high, also))


def test_what_is_always_or_never_true(tmp_path: Path) -> None:
    assert read(tmp_path, DECLARED + BOX).cases[0].unsafe == ((),)  # every output is unsafe
    assert not read(tmp_path, DECLARED + BOX + "(assert (<= 1 0))").cases
    assert read(tmp_path, DECLARED + BOX + "(assert (or (< 0 0) (<= Y_0 (+ Y_0 1))))").cases[0].unsafe == ((),)


def test_equality_and_strict_inequality(tmp_path: Path) -> None:
    (case,) = read(
        tmp_path, DECLARED + "(assert (= X_0 0.5))(assert (and (> X_1 0) (< X_1 1)))(assert (= Y_0 2))"
    ).cases
    assert case.lower == (Fraction(1, 2), 0)
    assert case.upper == (Fraction(1, 2), 1)
    (rows,) = case.unsafe
    assert set(rows) == {row("0", True, X_1="-1"), row("-1", True, X_1="1"), row("-2", Y_0="1"), row("2", Y_0="-1")}
    inside, border = (Fraction(1, 2), Fraction(1, 2)), (Fraction(1, 2), Fraction(0))
    assert holds(rows, inside, (Fraction(2), Fraction(0)))
    assert not holds(rows, border, (Fraction(2), Fraction(0)))


def test_tensors_hold_what_the_exact_numbers_hold(tmp_path: Path) -> None:
    """Boxes are rounded outwards, weights scaled to whole numbers, offsets rounded down; inputs follow the outputs."""
    (case,) = read(tmp_path, DECLARED + BOX + "(assert (<= (+ (* 0.1 Y_1) (* 0.3 X_0)) 0.7))").cases
    assert needs_input(case)
    ((weights, offsets),) = halfspaces(case, 2)
    assert weights.tolist() == [[0, 1, 3, 0]]
    assert offsets.tolist() == [-7]
    for dtype in (torch.float32, torch.float64):
        lower, upper = box(case, dtype, outward=True)
        assert Fraction(upper[1].item()) >= Fraction(1, 10) >= Fraction(torch.nextafter(upper, lower)[1].item())
        assert (lower[0], lower[1], upper[0]) == (-1, 0, 1)
    ((_, offsets),) = halfspaces(read(tmp_path, DECLARED + BOX + "(assert (<= Y_0 0.1))").cases[0], 2)
    assert Fraction(offsets.item()) <= Fraction(-1, 10)


def test_weights_of_many_digits_and_of_any_size_are_tensors(tmp_path: Path) -> None:
    """What rounding does to weights is less than what the verifier takes off a bound, also where terms cancel."""
    up, down = (_digits(Fraction(0.1) + Fraction(part, 100) * Fraction(math.ulp(0.1))) for part in (51, 49))
    unsafe = f"(assert (<= (- (* {up} Y_0) (* {down} Y_1)) 0))"
    (case,) = read(tmp_path, DECLARED + BOX + unsafe).cases
    (sets,) = halfspaces(case, 2)
    assert float(sets.weights.sum()) == math.ulp(0.1)  # 1 and not .02 of it
    x = torch.full((1, 2), 2.0**60, dtype=torch.float64)
    layer = nn.Linear(2, 2, bias=False).double()
    layer.weight.data = torch.eye(2).double()
    form = prepared(nn.Sequential(layer, nn.ReLU()), x).relu
    exact = 2**60 * (Fraction(up) - Fraction(down))
    assert Fraction(float(at_once(form, Interval.point(x), Unsafe([sets], 2))[0])) <= exact
    for numbers in ("(* 1e-200 Y_0) 1e200", "(+ (* 1e-250 Y_0) (* 1e250 Y_1)) 1e300", "Y_0 1e300"):
        ((weights, offsets),) = halfspaces(read(tmp_path, DECLARED + BOX + f"(assert (<= {numbers}))").cases[0], 2)
        assert bool(weights.isfinite().all() & offsets.isfinite().all())


def _digits(number: Fraction) -> str:
    return f"0.{int(number * 10**25):025d}"


def test_gzipped_files_are_found_without_their_suffix(tmp_path: Path) -> None:
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress((DECLARED + BOX).encode()))
    assert read_property(tmp_path / "p.vnnlib").inputs == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("(" * 10_000_000, "line 1: brackets nested deeper than 100"),
        ("()" * 5_000_000, "line 1: brackets with nothing in them"),
        (")" * 10_000_000, "line 1: a bracket closes that was not opened"),
        ("(assert (or" + "(<= Y_0 1)" * 60_000 + "))", "line 6: 60000 alternatives"),
        ("(assert (and" + "(or (<= Y_0 1) (<= Y_0 2))" * 40 + "))", "line 6: 1099511627776 alternatives"),
        ("(assert (<= Y_0", "line 6: a bracket that is never closed: the file is truncated"),
        ("\n\n(check-sat)", "line 8: the command 'check-sat', which is not covered"),
        ("\n(assert (<= (* Y_0 Y_1) 1))", "line 7: a product of variables, which is not linear"),
        ("(assert (xor (<= Y_0 1) (<= Y_1 1)))", "line 6: `xor`, which is not covered"),
        ("(declare-const H_0 Real)", "line 6: the variable 'H_0'.* hidden nodes are not covered"),
        ("(declare-const Y_2 Bool)", "line 6: a declaration of something else than a real number"),
        ("(declare-const Y_3 Real)", "the output Y_2 is not declared"),
        ("(declare-const Y_0 Real)", "line 6: Y_0 is declared twice"),
        ("(assert (<= Y_7 1))", "line 6: the variable 'Y_7', which is not declared"),
        ("(assert (<= Y_0 1e99999999))", "line 6: '1e99999999', which is no number"),
        ("(assert (<= Y_0 1e400))", "line 6: a number that is too large or too small"),
        ("(assert (<= (* 1e200 Y_0) (* 1e200 1e200)))", "line 6: a number that is too large or too small"),
        ("(assert (<= (* 1e-200 1e-200 Y_0) 1))", "line 6: a number that is too large or too small"),
        ("(assert (<= Y_0 1 2))", "line 6: `<=` of 3 expressions, where it takes two"),
        ("(assert (<= Y_0 ((+ 1 2))))", "line 6: an expression that does not begin with an operator"),
        ("(assert (sin Y_0))", "line 6: `sin`, which is not covered"),
        ("(assert (<= (sin Y_0) 1))", "line 6: `sin` in an expression"),
        ("(assert Y_0)", "line 6: not a formula"),
        ("hello", "line 6: 'hello' outside of brackets"),
    ],
)
def test_bad_files_are_refused_quickly_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    begin = time.process_time()
    text = text if len(text) in (0, 10_000_000) else DECLARED + BOX + "\n" + text
    with pytest.raises(rp.ArgumentError, match=message):
        read(tmp_path, text)
    assert time.process_time() - begin < 3


def test_inputs_without_bounds_and_files_without_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(rp.ArgumentError, match="the input X_1 has no bound from above"):
        read(tmp_path, DECLARED + "(assert (and (>= X_0 0) (<= X_0 0) (>= X_1 0)))")
    with pytest.raises(rp.ArgumentError, match="the input X_0 is not declared"):
        read(tmp_path, "(declare-const Y_0 Real)")
    with pytest.raises(rp.ArgumentError, match="no file"):
        read_property(tmp_path / "nothing.vnnlib")
    (tmp_path / "p.vnnlib").write_bytes(b"\xff\xfe(assert")
    with pytest.raises(rp.ArgumentError, match="not text"):
        read_property(tmp_path / "p.vnnlib")


TWO = """(vnnlib-version <2.0>)
(declare-network f (declare-input A float32 [1]) (declare-input B float32 [1,1]) (declare-output Z float32 [1,2]))
(assert (and (>= A[0] -1.0) (<= A[0] 1.0) (>= B[0,0] 0.0) (<= B[0,0] 0.1)))
(assert (<= Z[0,0] 0.3))
(assert (>= (- Z[0,0] (* 2.0 Z[0,1])) -0.1))
"""


def test_version_two_is_read_by_its_own_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "vnnlib", None)
        with pytest.raises(rp.PluginError, match=r'parser is not installed: pip install "robust_plugins\[vnnlib\]"'):
            read(tmp_path, TWO)
    pytest.importorskip("vnnlib", reason="needs the parser of VNN-LIB 2.0")
    (case,) = read(tmp_path, TWO).cases
    assert case.lower == (-1, 0)
    assert case.upper == (1, Fraction(1, 10))
    assert case.unsafe == ((row("-0.3", Y_0="1"), row("-0.1", Y_0="-1", Y_1="2")),)
    for text, message in (
        (TWO.replace("Z[0,0] 0.3", "Z[0,7] 0.3"), "refused by the parser of VNN-LIB 2.0: .*out of bounds"),
        (TWO.replace("2.0 Z", "Z[0,0] Z"), "line 5: a product of variables"),
        (TWO.replace("float32 [1,2])", "float32 [1,2]) (declare-hidden H float32 [3] 'h')"), "refused|hidden nodes"),
        (TWO + "(" * 1_000_000, "nested deeper"),
    ):
        with pytest.raises(rp.ArgumentError, match=message):
            read(tmp_path, text)


def test_published_properties() -> None:
    """Each of the small ones and of acasxu, and one of mnist_fc."""
    folder = published()
    refused = []
    for path in [*folder.glob("small/*.vnnlib"), *folder.glob("acasxu/vnnlib/*"), *folder.glob("*/vnnlib/*p_12_0.03*")]:
        try:
            read_property(path)
        except rp.ArgumentError:
            refused.append(path.stem)
    assert sorted(refused) == [
        f"vnnlib__test_{name}" for name in ("assert_operator_not_implemented", "command_not_implemented", "mul_var_var")
    ]
    both = read_property(folder / "acasxu" / "vnnlib" / "prop_6.vnnlib")
    assert [len(case.unsafe) for case in both.cases] == [4, 4]
