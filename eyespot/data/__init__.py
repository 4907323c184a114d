"""Data: a path to numbered samples to batches. `open_source` finds what a path is, `Data` makes batches of it."""

from eyespot.data.batches import Request, occurrence_keys
from eyespot.data.decode import BadFile, decode
from eyespot.data.loader import Data
from eyespot.data.sources import Source, aligned_labels, open_source

__all__ = ["BadFile", "Data", "Request", "Source", "aligned_labels", "decode", "occurrence_keys", "open_source"]
