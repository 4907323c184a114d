"""Protocols: one protocol, one file, frozen constants and a version. `eyespot.evaluate(...)` runs one."""

from eyespot.callable import make_callable

make_callable(__name__, "eyespot.evaluate.evaluate:evaluate")
