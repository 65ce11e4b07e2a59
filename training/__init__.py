"""From a recipe and labelled data to a bundle."""
