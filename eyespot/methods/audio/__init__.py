"""Methods for sound: one paper, one file."""
