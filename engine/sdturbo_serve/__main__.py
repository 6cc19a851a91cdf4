"""`python -m sdturbo_serve` is the command `sdturbo-serve`."""

from sdturbo_serve.cli import main

main()
