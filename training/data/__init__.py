"""Rows on their way: collected, annotated, cleaned, split, drawn into bags."""
