"""The `choir` command."""
