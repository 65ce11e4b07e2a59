"""Checks of rows. Each returns the indices of the rows that fail it, with the reasons."""
