"""How the outputs of members become one answer: numpy alone, the same code online and offline.

Shapes everywhere: M members, N rows (inputs), C labels. `Fusion` in `fuse.py` is the way in; the
other files hold one method or measure each.
"""
