"""`python -m sdturbo` is the command `sdturbo`."""

from sdturbo.commands.cli import main

main()
