"""Methods that start from a representation; one paper, one file. `eyespot.adapt(...)` runs one."""

from eyespot.callable import make_callable

make_callable(__name__, "eyespot.train.pretrain:adapt")
