"""Methods that take scenes apart: the systems of a survey, one file a system."""
