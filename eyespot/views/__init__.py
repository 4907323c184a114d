"""Batch -> views: crops, colour, filters and masks, made in batches from counter-based draws; geometry is returned."""
