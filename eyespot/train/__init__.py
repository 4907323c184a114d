"""The linear loop and what it needs."""
