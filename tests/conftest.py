"""Shape and type checks at run time, one hypothesis profile, and where the real data may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import support.typechecker
from hypothesis import HealthCheck, settings
from support.length import LONG

support.typechecker.install("robust_plugins")

from robust_plugins.adapters.lirpa import audit  # noqa: E402 (after the hook)

settings.register_profile(
    "suite",
    max_examples=100 if LONG else 30,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")
support.typechecker.checks.calls = float("inf") if LONG else 20


@pytest.fixture(autouse=True)
def shape_checks() -> None:
    """The first calls are checked in every test, whatever ran before it."""
    support.typechecker.checks.start()


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as they are, whatever terminal the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data, published networks and reference results; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"the folder with data and reference results is absent: {folder}")
    return folder


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches the run-time shape checks off, so that a wrong argument meets the package's own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def audits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short audits of auto_LiRPA's conversions, at one radius, in tests of other things: a full one takes a second.

    Tests about the bounds themselves are marked `full_audits`; slow tests have them where they do not say
    `short_audits`.
    """
    marked = request.node.get_closest_marker
    if marked("short_audits") or not (marked("full_audits") or marked("slow")):
        monkeypatch.setattr(audit, "_RADII", (0.03,))
        monkeypatch.setattr(audit, "_RADII_OF_CHAINS", (0.03,))
        monkeypatch.setattr(audit, "_RADII_ALONE", ())
        monkeypatch.setattr(audit, "_RADII_OF_DRAWN", ())
