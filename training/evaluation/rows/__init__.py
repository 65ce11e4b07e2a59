"""Which columns of labelled rows are an ensemble's inputs."""
