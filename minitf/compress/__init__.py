"""Pruning, quantisation, factorisation, one file each."""
