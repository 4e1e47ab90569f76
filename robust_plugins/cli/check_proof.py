"""`robust-plugins check-proof`: checks proofs of complete verification, without what found them."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import click

from robust_plugins.cli.printing import as_json, print_json
from robust_plugins.errors import ArgumentError
from robust_plugins.proof_check import ProofError, check, network, records
from robust_plugins.proof_check.reading import Node, Record


@click.command(
    short_help="Check the proofs in a file, without trusting the search.",
    epilog="Exit codes: 0 everything in the file is proved; 1 something is not, or the file is damaged or holds no "
    "proof; 2 wrong usage.",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--model",
    help="What the proofs should be about: an ONNX, TorchScript or torch.export file, a network of the zoo or "
    "'package.module:factory'. Layers and weights have to be those in the file.",
)
@click.option("--weights", help="The model's weights: a state dict written by torch.save, or safetensors.")
@click.option(
    "--vnnlib",
    help="A property in VNN-LIB: all of its boxes have to be within those of proofs of its constraints.",
)
@as_json
@click.pass_context
def check_proof(
    ctx: click.Context, file: Path, model: str | None, weights: str | None, vnnlib: str | None, as_json: bool
) -> None:
    """Check every proof in FILE, which interval:branch-and-bound(proof="FILE") or `verify --proof FILE` has written.

    The check is a small program of its own. It computes every bound once more, in float64 with all rounding errors
    taken off, and believes nothing else. What it proves is about the network in FILE, and the boxes and labels that
    are printed; with --model that network is compared with a model too, with --vnnlib boxes and constraints with those
    of a property.
    """
    if weights is not None and model is None:
        raise click.UsageError("--weights goes with --model.")
    asked = None if vnnlib is None else _property(vnnlib)
    found: list[dict[str, Any]] = []
    holding: list[Record] = []
    told = None if as_json else _tell
    error = ""
    try:
        for row, record in _checked(file, model, weights, asked):
            found.append(row)
            if row["proved"]:
                holding.append(record)
            if told is not None:
                told(row)
        if not found:
            error = "there is no proof in it"
        elif asked is not None:
            error = _left_open(asked, holding)
    except ProofError as problem:
        error = str(problem)
    except OSError as problem:
        raise ArgumentError(
            "FILE", repr(str(file)), accepted="a file that can be read", hint=f"{problem.strerror}."
        ) from problem
    proved = sum(row["proved"] for row in found)
    about = "the model" if model is not None else "the network in the file"
    if as_json:
        said = {} if asked is None else {"property": vnnlib, "property_proved": not error}
        print_json(
            {"file": str(file), "about": about, "proved": proved, "proofs": found} | said | {"error": error or None}
        )
    else:
        if found:  # of a file without a proof there is nothing to count
            click.echo(f"{proved} of {len(found)} proofs hold; they are about {about}" + _hint(model))
        if asked is not None and not error:
            click.echo(f"{vnnlib}: proved, all of it")
        if error:
            click.echo(f"Error: {file}: {error}", err=True)
    ctx.exit(0 if not error and proved == len(found) else 1)


def _property(path: str) -> Any:
    from robust_plugins.adapters.onnx.properties import read_property  # not needed for anything else here

    return read_property(path)


def _left_open(asked: Any, holding: list[Record]) -> str:
    from robust_plugins.adapters.onnx.proofs import unproved

    left = unproved(asked, holding)
    if not left:
        return ""
    return f"no proof here is about box {', '.join(map(str, left))} of the property's {len(asked.cases)}"


def _checked(file: Path, model: str | None, weights: str | None, asked: Any) -> Any:
    networks: dict[str, list[Node]] = {}
    number = 0
    for record in records(file):
        if "nodes" in record.about:
            networks[record.digest] = network(record)
            if model is not None:
                _compare(record, networks[record.digest], model, weights, asked)
            continue
        number += 1
        nodes, start = networks.get(str(record.about.get("network"))), time.process_time()
        row: dict[str, Any] = {"number": number, "proved": False, "why": "its network is not in the file"}
        if nodes is not None:
            try:
                check(record, nodes)
                row |= {"proved": True, "why": None}
            except ProofError as error:
                row["why"] = str(error)
        yield row | _statement(record) | {"seconds": time.process_time() - start}, record


def _compare(record: Record, nodes: list[Node], spec: str, weights: str | None, asked: Any) -> None:
    # Nothing but this comparison needs the engine.
    from robust_plugins.decisions.verifier.proofs.comparing import compare_network
    from robust_plugins.networks import load_model

    shape = [int(n) for n in record.about.get("shape", [nodes[0].size])]
    outputs, with_input = nodes[-1].size, asked is not None and nodes[-1].size == asked.outputs + asked.inputs
    model = load_model(spec, input_shape=shape, classes=asked.outputs if with_input else outputs, weights=weights)
    if with_input:  # as for constraints on inputs
        from robust_plugins.adapters.onnx.properties.rows import WithInput

        model = WithInput(model)
    compare_network(record, nodes, model)


def _statement(record: Record) -> dict[str, Any]:
    """A sample's label and box, whether or not anything is proved of them."""
    asked, ends = record.about.get("property"), [record.arrays.get(name) for name in ("lower", "upper")]
    label = asked.get("label") if isinstance(asked, dict) else None
    found: dict[str, Any] = {"label": label, "radius": None, "box": None}
    if ends[0] is not None and ends[1] is not None and ends[0].shape == ends[1].shape and ends[0].size:
        found["radius"] = float((ends[1] - ends[0]).max()) / 2
        found["box"] = hashlib.sha256(ends[0].tobytes() + ends[1].tobytes()).hexdigest()[:16]
    return found


def _tell(row: dict[str, Any]) -> None:
    what = "a property" if row["label"] is None else f"label {row['label']}"
    radius = "" if row["radius"] is None else f" over a box of radius {row['radius']:.4g} (sha256 {row['box']})"
    end = f"proved, {row['seconds']:.2f} s" if row["proved"] else f"REJECTED: {row['why']}"
    click.echo(f"{row['number']}: {what}{radius}: {end}")


def _hint(model: str | None) -> str:
    return "" if model is not None else "; --model compares it with yours"
