"""Methods for pictures with captions: one paper, one file."""
