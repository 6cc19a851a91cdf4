"""Exact changes of a module before it is exported: one a file, its formula in the docstring, its own test.

A rewrite takes a module of diffusers and changes it in place; the reference that parity is measured against is left as is.
"""
