"""Methods on the hypersphere."""
