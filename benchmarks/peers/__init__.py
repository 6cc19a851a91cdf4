"""Other programs that draw with the same checkpoint, each in an environment of its own.

`*_worker.py` and `*_converter.py` run inside those environments and import nothing of this project but `lines.py` beside them.
Those of sdturbo itself run in this project's environment.
"""
