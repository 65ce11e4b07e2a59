"""Bases with a tower for images and one for texts (CLIP, SigLIP): what they read, what they are trained on, and which
of their modules an adapter changes."""
