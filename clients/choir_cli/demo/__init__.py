"""`make demo`: the whole way once, on data that the project generates itself."""
