"""Methods for still images: one paper, one file."""
