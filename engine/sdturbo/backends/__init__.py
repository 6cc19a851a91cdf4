"""Backends: their shape (`protocols`), choices and offers (`choice`), and the one place that chooses (`registry`).

A backend is a module with two functions, `offers` and `connect`. It imports its library only inside them.
"""

from sdturbo.backends.choice import PRECISIONS, BackendChoice, Offer
from sdturbo.backends.protocols import Backend, Program, Session
from sdturbo.backends.registry import connect, load_first, names, offer_for, offers, register

__all__ = [
    "PRECISIONS",
    "Backend",
    "BackendChoice",
    "Offer",
    "Program",
    "Session",
    "connect",
    "load_first",
    "names",
    "offer_for",
    "offers",
    "register",
]
