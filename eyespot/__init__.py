"""Learn to see without labels: one interface over published self-supervised methods."""
