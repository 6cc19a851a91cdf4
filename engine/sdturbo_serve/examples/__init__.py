"""Programs of other people with sdturbo in them. Each runs: `python -m sdturbo_serve.examples.asyncio_program`."""
