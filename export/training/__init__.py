"""How models are made. Not in the wheel: `make` puts export/ on Python's path to run it."""
