"""Shape and type checks at run time, one hypothesis profile, and where the real data may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import support.typechecker
from hypothesis import HealthCheck, settings

support.typechecker.install("robust_plugins")

from robust_plugins.adapters.lirpa import audit  # noqa: E402 (after the hook)

for name, examples in (("fast", 30), ("all", 100)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Fewer examples where slow tests are left out; before the tests are imported, which fix theirs by then."""
    fast = config.option.markexpr == "not slow"
    settings.load_profile("fast" if fast else "all")
    support.typechecker.checks.calls = 20 if fast else float("inf")


@pytest.fixture(autouse=True)
def shape_checks() -> None:
    """The first calls are checked in every test, whatever ran before it."""
    support.typechecker.checks.start()


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
