"""A folder from which a contradiction between tools can be seen again, with onnxruntime alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from robust_plugins.adapters.onnx.auditing import Audited
from robust_plugins.adapters.onnx.counterexamples import write_counterexample
from robust_plugins.adapters.onnx.files import contents
from robust_plugins.adapters.onnx.network import read_network
from robust_plugins.adapters.onnx.properties import read_property

SCRIPT = '''"""Runs the network on each counterexample here, and compares exactly; needs onnxruntime and numpy.

unsafe: the input lies in a box of the property, and the outputs satisfy all rows of one of its conjunctions.
"""

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
session = onnxruntime.InferenceSession(str(here / "network.onnx"), providers=["CPUExecutionProvider"])
ports = json.loads((here / "inputs.json").read_text())
cases = json.loads((here / "property.json").read_text())
for path in sorted(here.glob("*.counterexample")):
    pairs = re.findall(r"\\(\\s*X_(\\d+)\\s+([^\\s()]+)\\s*\\)", path.read_text())
    x = [Fraction(number) for _, number in sorted(pairs, key=lambda pair: int(pair[0]))]
    feed, start = {}, 0
    for name, shape, kind in ports:
        size = int(np.prod(shape))
        part = np.array([float(v) for v in x[start : start + size]], kind)
        feed[name], start = part.reshape(shape), start + size
    y = [Fraction(float(v)) for out in session.run(None, feed) for v in np.asarray(out).reshape(-1)]
    values = {f"X_{i}": v for i, v in enumerate(x)} | {f"Y_{i}": v for i, v in enumerate(y)}
    unsafe, nearest = False, None
    for case in cases:
        ends = zip(case["lower"], x, case["upper"])
        outside = max(max(Fraction(low) - v, v - Fraction(up), 0) for low, v, up in ends)
        for rows in case["unsafe"]:
            sides = [
                (Fraction(row["offset"]) + sum(Fraction(w) * values[name] for name, w in row["weights"]), row["strict"])
                for row in rows
            ]
            excess = max((side for side, _ in sides), default=Fraction(0))
            unsafe |= outside == 0 and all(side < 0 or (side == 0 and not strict) for side, strict in sides)
            nearest = min(nearest or (outside, excess), (outside, excess))
    print(f"{path.stem}: {'unsafe' if unsafe else 'not unsafe'}; outside of the box by {float(nearest[0]):.3g}, "
          f"farthest row {float(nearest[1]):.3g}; outputs {[float(v) for v in y]}")
'''
"""What is written beside the files."""


def write_reproducer(folder: Path, source: Path, audited: Audited) -> None:
    """Writes network, property, claims, all counterexamples and a script that replays them into `folder`.

    `source`: what the instance's paths are relative to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    instance = audited.instance
    network, question = read_network(source / instance.onnx), read_property(source / instance.vnnlib)
    (folder / "network.onnx").write_bytes(contents(source / instance.onnx, "file", "an ONNX model"))
    (folder / "property.vnnlib").write_bytes(contents(source / instance.vnnlib, "property", "a property"))
    ports = [(port.name, port.shape, str(port.dtype).removeprefix("torch.")) for port in network.inputs]
    (folder / "inputs.json").write_text(json.dumps(ports))
    cases = [
        {
            "lower": [str(v) for v in case.lower],
            "upper": [str(v) for v in case.upper],
            "unsafe": [
                [
                    {
                        "weights": [(name, str(weight)) for name, weight in row.weights],
                        "offset": str(row.offset),
                        "strict": row.strict,
                    }
                    for row in rows
                ]
                for rows in case.unsafe
            ],
        }
        for case in question.cases
    ]
    (folder / "property.json").write_text(json.dumps(cases))
    with (folder / "claims.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("tool", "answer", "counterexample", "wrong"))
        for examined in audited.claims:
            claim = examined.claim
            writer.writerow((claim.tool, claim.answer, examined.standing or "", examined.wrong))
            if claim.counterexample is not None and examined.standing != "unreadable":
                data = contents(claim.counterexample, "counterexample", "pairs such as (X_0 0.5)")
                (folder / f"{claim.tool}.counterexample").write_bytes(data)
    if audited.witness is not None:
        # As it was confirmed: moved into the box where it missed that by a rounding error.
        write_counterexample(folder / "confirmed.counterexample", audited.witness, ())
    (folder / "replay.py").write_text(SCRIPT)
