"""The command line."""


def main() -> None:
    """Placeholder until the command line is written."""
    raise SystemExit(2)
