"""AUTOMATIC1111's API for clients that speak it: /sdapi/v1. The flag `--a1111` turns it on.

Fields that SD-Turbo lacks are mapped to its own. `info` names them under "sdturbo", in `not_honoured`.
"""
