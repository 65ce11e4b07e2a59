"""The embedded example: generated customer-support messages and the recipe of `make demo`."""
