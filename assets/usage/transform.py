"""Fates of usage records. The rules are those of every topic: `assets.slices.fates`."""

from assets.slices.fates import COUNTED, DUPLICATE, FATES, QUARANTINED, REJECTED

__all__ = ["COUNTED", "DUPLICATE", "FATES", "QUARANTINED", "REJECTED"]
