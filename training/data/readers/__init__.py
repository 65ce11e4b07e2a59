"""Readers of sources, row by row: files, object stores, the hub, queries."""
