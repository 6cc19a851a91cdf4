"""`python -m sdturbo` is the command `sdturbo`."""

from sdturbo.cli import main

main()
