"""Figures for answers: a file for each family of metrics, and one for intervals and paired tests of any of them."""
