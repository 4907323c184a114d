"""Trained backbones in other libraries' formats, one format a file; each is loaded back there and compared."""

from eyespot.callable import make_callable

make_callable(__name__, "eyespot.export.export:export")
