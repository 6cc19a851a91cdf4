"""AUTOMATIC1111's API for clients that speak it: /sdapi/v1. The flag `--a1111` turns it on.

What SD-Turbo has not is mapped to what it has, and `info` says so under "sdturbo", in `not_honoured`.
"""
