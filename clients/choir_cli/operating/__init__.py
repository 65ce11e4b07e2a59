"""Operating a running server: what is live, swaps and trials."""
