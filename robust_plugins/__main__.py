"""`python -m robust_plugins` is the command `robust-plugins`."""

from robust_plugins.cli import main

main()
