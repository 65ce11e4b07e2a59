"""`choir batch`: many requests from a file, and their answers into another."""
