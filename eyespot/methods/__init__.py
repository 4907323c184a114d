"""One paper, one file. `eyespot.methods()` lists them."""

from eyespot.callable import make_callable

make_callable(__name__, "eyespot.methods.catalog:methods")
