"""The steps that rows go through: reading, annotation, cleaning, splitting, bags. `training/preparation.py` runs
them."""
