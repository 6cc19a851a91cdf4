"""`python -m sdturbo_export` is the command `sdturbo-export`."""

from sdturbo_export.cli import main

main()
