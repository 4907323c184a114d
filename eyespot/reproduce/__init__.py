"""A paper's claim, run against its control and recorded. `eyespot.reproduce(...)` runs one."""

from eyespot.callable import make_callable

make_callable(__name__, "eyespot.reproduce.runner:reproduce")
