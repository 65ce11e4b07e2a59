"""Sources read row by row: files, object stores, the hub, queries."""
