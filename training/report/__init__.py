"""The report of a training run: the page for a browser, and the figures as JSON."""
