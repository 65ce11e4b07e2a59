"""Rows: loading, splitting, bags, tokens and batches."""
