"""Trains one member of a finished bundle anew (`choir train --member`), for a swap while the bundle is served."""
