"""A folder from which a contradiction between two records can be seen again: weights, inputs, components, seeds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from robust_plugins.benchmark.auditing import Finding, Findings, audit
from robust_plugins.benchmark.columns import Columns
from robust_plugins.benchmark.hashing import model_hash
from robust_plugins.benchmark.records import POISONING_CERTIFIER, Record, samples_of
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.subjects import Subject
from robust_plugins.benchmark.verifying import Subjects, component_of
from robust_plugins.benchmark.work import Job, answered
from robust_plugins.errors import RobustPluginsError
from robust_plugins.networks import is_file, load_model
from robust_plugins.registry.information import Kind

SCRIPT = '''"""Runs the components of case.json on the inputs here again, and says whether they contradict each other.

Needs robust_plugins and what the components need. Exit codes: 0 no contradiction any more; 3 the same one again.
"""

import sys
from pathlib import Path

from robust_plugins.benchmark.reproducing import reproduce

sys.exit(reproduce(Path(__file__).parent))
'''
"""What is written beside the files."""


@dataclass(frozen=True)
class Reproducer:
    """One finding, and the folder that shows it again, or why there is none."""

    finding: Finding
    folder: Path | None
    obstacle: str = ""


def write_reproducers(
    folder: Path,
    findings: Findings,
    chosen: Sequence[Finding],
    stores: Sequence[Path],
    say: Callable[[str], None] = lambda text: None,
) -> list[Reproducer]:
    """Writes a folder into `folder` for each of the findings `chosen`, with a script that shows it again.

    Weights and inputs come from the stores where they were kept, else from the study: an import path runs the code
    that it names, and is named in the folder; a file is copied. What cannot be written is returned with its obstacle,
    such as a module that was handed over from Python and not kept.
    """
    found = []
    for number, finding in enumerate(chosen, 1):
        target = folder / f"{number:02d}-{re.sub('[^a-z]+', '-', finding.rule)}"
        try:
            _write(target, findings, finding, stores, say)
        except (RobustPluginsError, OSError, KeyError, RuntimeError) as error:
            found.append(Reproducer(finding, None, str(error.args[0] if error.args else error)))
        else:
            found.append(Reproducer(finding, target))
    return found


def _write(
    target: Path, findings: Findings, finding: Finding, stores: Sequence[Path], say: Callable[[str], None]
) -> None:
    from safetensors.torch import save_file

    wanted = [str(findings.columns["identity"][place]) for place in dict.fromkeys((finding.first, finding.second))]
    read = [_record(identity, stores, say) for identity in wanted]
    subject = read[0][1]
    samples = sorted({sample for record, _ in read for sample in samples_of(record.batch)})
    places = torch.tensor([sample - subject.first for sample in samples])
    with torch.no_grad():
        out = subject.module(subject.x[:1])
    source = subject.source
    if not isinstance(source, str):
        raise KeyError("the model was handed over from Python: put it behind an import path, or export it to a file")
    target.mkdir(parents=True, exist_ok=True)
    if is_file(source):
        copied = "model" + "".join(Path(source).suffixes[-2:] if source.endswith(".gz") else Path(source).suffixes[-1:])
        shutil.copyfile(source, target / copied)
        source = copied
    else:
        state = {name: t.detach().cpu().clone() for name, t in subject.module.state_dict().items()}
        save_file(state, target / "weights.safetensors")
    save_file(
        {"x": subject.x[places].cpu().contiguous(), "y": subject.y[places].cpu().contiguous()},
        target / "inputs.safetensors",
    )
    case = {
        "rule": finding.rule, "sentence": findings.sentence(finding), "source": source,
        "input_shape": list(subject.x.shape[1:]), "classes": max(2, out.shape[-1] if out.dim() > 1 else 1),
        "clip": subject.clip, "samples": samples, "records": [asdict(record) for record, _ in read],
    }  # fmt: skip
    (target / "case.json").write_text(json.dumps(case, indent=2))
    (target / "reproduce.py").write_text(SCRIPT)


def _record(identity: str, stores: Sequence[Path], say: Callable[[str], None]) -> tuple[Record, Subject]:
    """A record and its subject, from the store that has it."""
    for path in stores:
        with Store(path) as store:
            for record in store.records(where={"identity": identity}, aliases=False):
                if record.kind in (Kind.POISONING_ATTACK.value, POISONING_CERTIFIER):
                    raise KeyError("poisoned trainings are seen again by running the study into another store")
                return record, Subjects(store, None, say)[record]
    raise KeyError(f"no store has the record {identity}")


def reproduce(folder: Path, say: Callable[[str], None] = print) -> int:
    """Derives the records of a reproducer again and audits them alone; returns 3 where they contradict each other.

    Returns 0 where they do not any more. Raises ArgumentError and the like where the model cannot be read.
    """
    from safetensors.torch import load_file

    case = json.loads((folder / "case.json").read_text())
    source = str(folder / case["source"]) if (folder / case["source"]).is_file() else case["source"]
    weights = folder / "weights.safetensors"
    model = load_model(
        source, input_shape=case["input_shape"], classes=case["classes"], weights=weights if weights.exists() else None
    ).eval()
    inputs = load_file(folder / "inputs.safetensors")
    say(f"{case['rule']}: {case['sentence']}")
    records = [Record(**fields) for fields in case["records"]]
    if model_hash(model) != records[0].model_hash:
        say("The model's code is not what it was when the records were made; its weights are.")
    again = [_again(record, model, inputs, case) for record in records]
    findings = audit(Columns.of({"identity": r.identity} | asdict(r) for r in again))
    for record in again:
        said = f"{record.verdict}, margin {record.margin}, distance {record.distance}"
        say(f"now: {record.component}, {record.norm} {record.eps:g}, samples {record.batch}: {said}{record.error}")
    say("The contradiction is there again." if findings.violations else "There is no contradiction any more.")
    return 3 if findings.violations else 0


def _again(record: Record, model: torch.nn.Module, inputs: dict[str, torch.Tensor], case: dict[str, Any]) -> Record:
    clip = None if case["clip"] is None else (case["clip"][0], case["clip"][1])
    subject = Subject(record.model, record.data, model, inputs["x"], inputs["y"], 0, clip, case["source"])
    places = tuple(case["samples"].index(sample) for sample in samples_of(record.batch))
    component, call = component_of(record)
    job = Job(
        subject=subject.key, kind=record.kind, component=component, ball=record.ball(), samples=places,
        seed=record.seed, call=tuple(call.items()), device=record.device, threads=record.threads,
    )  # fmt: skip
    row = answered(job, subject.packed).rows[samples_of(record.batch).index(record.sample)]
    nothing: dict[str, Any] = dict.fromkeys(("success", "margin", "distance", "loss", "prediction"))
    return replace(record, **(nothing | {"error": "", "artifact": ""} | row))
