"""`Setting`: all records about decisions of one model on one data set in balls of one norm, and the figures of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from robust_plugins.benchmark.columns import Columns
from robust_plugins.harness.wilson import Share

ANSWERS = ("certified", "falsified", "unknown", "timeout", "error", "unsupported")
"""The verdicts in the order in which pictures stack them."""


@dataclass(frozen=True)
class Cell:
    """The answers of one component at one radius."""

    component: str
    kind: str
    eps: float
    counts: dict[str, int]
    """How many samples got each verdict; one with several seeds counts once, with the worst answer for the model."""
    seconds: float
    """Median per sample of the component's own time; NaN where it was not measured."""
    margin: float
    """Median of its finite margins; 0 where there is none."""
    finite: int
    """How many of its margins are finite."""

    @property
    def asked(self) -> int:
        """The number of samples with a record."""
        return sum(self.counts.values())

    @property
    def silent(self) -> int:
        """For how many there is no answer."""
        return sum(self.counts[name] for name in ("timeout", "error", "unsupported"))

    @property
    def share(self) -> Share:
        """The accuracy: of an attack what it did not break of what it answered for; of a certifier what it proved."""
        if self.kind == "attack":
            return Share(self.counts["unknown"], self.asked - self.silent)
        return Share(self.counts["certified"], self.asked)


class Setting:
    """One model, data set, norm and valid range: what is known of its robust accuracy at each radius."""

    def __init__(self, columns: Columns, clean: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Takes the places of the clean records of the model and data, and those of its attacks and certifiers."""
        self.columns, self.clean_places, self.places = columns, clean, places
        first = int(places[0])
        self.model, self.data, self.norm, self.clip, self.box = (
            str(columns[name][first]) for name in ("model", "data", "norm", "clip", "box")
        )
        everything = np.concatenate((clean, places))
        self.samples, where = np.unique(columns["sample"][everything], return_inverse=True)
        self._clean_rows, self._rows = where[: len(clean)], where[len(clean) :]
        self.radii: list[float] = sorted(set(columns["eps"][places].tolist()))

    @property
    def units(self) -> str:
        """The norm and the unit of its radii, in words."""
        return f"{self.norm}, {'times those of the features' if self.box else 'input units'}"

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.samples)

    @cached_property
    def wrong(self) -> NDArray[np.bool_]:
        """Which samples the model decides wrongly, unattacked."""
        found = np.zeros(self.count, bool)
        found[self._clean_rows[self.columns["verdict"][self.clean_places] == "falsified"]] = True
        return found

    @cached_property
    def clean(self) -> Share:
        """The clean accuracy, of the samples that have a clean record."""
        seen = len(np.unique(self._clean_rows))
        return Share(seen - int(self.wrong.sum()), seen)

    @cached_property
    def attacked_radius(self) -> NDArray[np.float64]:
        """For each sample the smallest distance at which anybody showed a wrong decision; inf where nobody did."""
        radius = np.where(self.wrong, 0.0, np.inf)
        rows = self.columns["verdict"][self.places] == "falsified"
        at = self.places[rows]
        np.minimum.at(radius, self._rows[rows], np.fmin(self.columns["distance"][at], self.columns["eps"][at]))
        return radius

    @cached_property
    def certified_radius(self) -> NDArray[np.float64]:
        """For each sample the largest radius that anybody certified; 0 where nobody did."""
        radius = np.zeros(self.count)
        rows = self.columns["verdict"][self.places] == "certified"
        np.maximum.at(radius, self._rows[rows], self.columns["eps"][self.places[rows]])
        return radius

    def attacked(self, eps: float) -> Share:
        """The upper bound of the robust accuracy: the samples that nobody broke at this radius or a smaller one."""
        # Distances to the border of a ball are rounded; an example of this ball counts.
        return Share(int((self.attacked_radius > eps * (1 + 1e-6)).sum()), self.count)

    def certified(self, eps: float) -> Share:
        """The lower bound of the robust accuracy: samples that somebody certified at this radius or a larger one."""
        return Share(int((self.certified_radius >= eps).sum()), self.count)

    @cached_property
    def has(self) -> dict[str, bool]:
        """Whether any attack, or a witness, and any certifier has answered."""
        answered = np.isin(self.columns["verdict"][self.places], ("certified", "falsified", "unknown"))
        kinds = set(self.columns["kind"][self.places[answered]])
        return {"attack": "attack" in kinds or bool(self.two_sided), "certifier": "certifier" in kinds}

    @cached_property
    def cells(self) -> list[Cell]:
        """The answers of each component at each radius, attacks first."""
        found = []
        verdict = self.columns["verdict"]
        for group in self.columns.groups(self.places, "kind", "component", "eps"):
            samples = self.columns["sample"][group]
            # Several seeds: the sample counts once. Of attacks a success stands, of certifiers a proof.
            rank = {name: i for i, name in enumerate(("falsified", "certified", "unknown", "timeout", "error"))}
            order = np.argsort([rank.get(v, 9) for v in verdict[group]], kind="stable")
            _, firsts = np.unique(samples[order], return_index=True)
            chosen = verdict[group[order[firsts]]]
            seconds, margins = self.columns["seconds"][group], self.columns["margin"][group]
            margins = margins[np.isfinite(margins)]
            first = int(group[0])
            found.append(Cell(
                str(self.columns["component"][first]), str(self.columns["kind"][first]),
                float(self.columns["eps"][first]), {name: int((chosen == name).sum()) for name in ANSWERS},
                float(np.nanmedian(seconds)) if np.isfinite(seconds).any() else float("nan"),
                float(np.median(margins)) if len(margins) else 0.0, len(margins),
            ))  # fmt: skip
        return sorted(found, key=lambda cell: cell.kind)

    def cell(self, component: str, eps: float) -> Cell | None:
        """The answers of one component at one radius, where there are any."""
        return next((c for c in self.cells if c.component == component and c.eps == eps), None)

    @cached_property
    def components(self) -> list[tuple[str, str]]:
        """The names and kinds of the components, attacks first, each in the order of the study."""
        return list(dict.fromkeys((cell.component, cell.kind) for cell in self.cells))

    @property
    def middle(self) -> float:
        """The radius that one figure for all radii is taken at: where the bracket is widest.

        Where all are closed, it is where most of the samples that verifiers decided were missed by others, else the
        one in the middle.
        """
        widths = [self.attacked(eps).value - self.certified(eps).value for eps in self.radii]
        if max(widths) > 0:
            return self.radii[int(np.argmax(widths))]
        missed = [sum(share.count for share in self._missed(eps)) for eps in self.radii]
        if max(missed) > 0:
            return self.radii[int(np.argmax(missed))]
        return self.radii[len(self.radii) // 2]

    @cached_property
    def two_sided(self) -> frozenset[str]:
        """The certifiers that both prove and refute, such as complete verifiers: what they decide is the truth."""
        columns, places = self.columns, self.places
        refuted = (columns["kind"][places] == "certifier") & (columns["verdict"][places] == "falsified")
        refuted &= ~self.wrong[self._rows]  # a wrong decision on the input itself is refuted by everybody
        return frozenset(columns["component"][places[refuted]])

    def loose(self, eps: float) -> str:
        """Which side of the bracket is loose at this radius, in words, and what that rests on."""
        high, low = self.attacked(eps), self.certified(eps)
        gap = high.count - low.count
        if gap < 0:
            return "the bracket crosses: more is certified than attacks left, so one side is wrong"
        bounds, attacks = self._missed(eps)
        sides = (("bounds", bounds, "proved"), ("attacks", attacks, "broke"))
        told = ", ".join(
            f"{who} missed {s.count} of {s.total} that a verifier {did}" for who, s, did in sides if s.total
        )
        if gap == 0:
            return "closed: every sample is decided" + (f" ({told})" if told else "")
        undecided = f"{gap} of {self.count} undecided"
        if not self.has["attack"] or not self.has["certifier"]:
            return f"{undecided}: no {'certifier' if self.has['attack'] else 'attack'} ran, which leaves its side open"
        if told:
            rates = [0.0 if not missed.total else missed.value for missed in (bounds, attacks)]
            if rates[0] != rates[1]:
                return f"{undecided}: the {'certified' if rates[0] > rates[1] else 'attacked'} side is loose ({told})"
            return f"{undecided}: {told}"
        return f"{undecided}: {self._margins(eps)}"

    def _missed(self, eps: float) -> tuple[Share, Share]:
        """Counts what certifiers that only prove, and attacks, missed of what verifiers decided at this radius."""
        columns, places, rows = self.columns, self.places, self._rows
        here = (columns["eps"][places] == eps) & ~self.wrong[rows]
        verifier = np.isin(columns["component"][places], list(self.two_sided))
        shares = []
        for kind, verdict in (("certifier", "certified"), ("attack", "falsified")):
            said = here & (columns["verdict"][places] == verdict)
            known, found = np.zeros(self.count, bool), np.zeros(self.count, bool)
            known[rows[said & verifier]] = True
            mine = here & (columns["kind"][places] == kind) & ~verifier
            found[rows[mine & said]] = True
            asked = np.zeros(self.count, bool)
            asked[rows[mine]] = True
            shares.append(Share(int((known & asked & ~found).sum()), int((known & asked).sum())))
        return shares[0], shares[1]

    def _margins(self, eps: float) -> str:
        """Which side's margins lie farther from zero on the undecided samples."""
        columns, places, rows = self.columns, self.places, self._rows
        open_ = (self.attacked_radius > eps * (1 + 1e-6)) & (self.certified_radius < eps)
        here = (columns["eps"][places] == eps) & open_[rows] & np.isfinite(columns["margin"][places])
        least, most = np.full(self.count, np.inf), np.full(self.count, -np.inf)
        attack = here & (columns["kind"][places] == "attack")
        bound = here & (columns["kind"][places] == "certifier")
        np.minimum.at(least, rows[attack], columns["margin"][places[attack]])
        np.maximum.at(most, rows[bound], columns["margin"][places[bound]])
        both = np.isfinite(least) & np.isfinite(most)
        if not both.any():
            return "no margin tells which side is loose"
        reached, proved = float(np.median(least[both])), float(np.median(most[both]))
        side = "certified" if -proved > reached else "attacked"
        medians = f"median margins there: proved {proved:.3g}, reached {reached:.3g}"
        return f"probably the {side} side is loose ({medians})"


def settings(columns: Columns) -> list[Setting]:
    """The settings of all records about decisions, in the order of the study."""
    clean = np.flatnonzero(columns["kind"] == "clean")
    of = {(columns["model"][g[0]], columns["data"][g[0]]): g for g in columns.groups(clean, "model", "data")}
    rest = np.flatnonzero(np.isin(columns["kind"], ("attack", "certifier")) & (columns["norm"] != ""))
    none = np.zeros(0, np.int64)
    return [
        Setting(columns, of.get((columns["model"][g[0]], columns["data"][g[0]]), none), g)
        for g in columns.groups(rest, "model", "data", "norm", "clip", "box")
    ]
