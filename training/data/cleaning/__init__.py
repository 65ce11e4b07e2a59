"""Checks of rows, each usable alone: indices of the rows that fail it, with the reason."""
