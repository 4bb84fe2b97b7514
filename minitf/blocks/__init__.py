"""Residual and norm layouts, one file each."""
