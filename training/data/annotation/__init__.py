"""Labels for rows that have none: by rules, by several annotators, by a model, and confirmed by hand."""
