"""Answers that stop early or abstain, within a risk that was bounded on validation rows."""
