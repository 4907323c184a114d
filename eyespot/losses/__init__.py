"""Losses, as pure functions of tensors: one subject a file, no collectives inside."""
