"""Images in requests: taken out of data URLs, checked, and decoded. The only place that does it. Nothing is fetched."""
