"""Metrics of answers: one file for each family, and `resampling.py` for intervals and paired tests of all of them."""
