"""Ranks the members' whole answers by a learned ranker (`stack` for generation)."""
