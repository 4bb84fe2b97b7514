"""Adaptation with few parameters, and other stand-ins for linear maps, one file each."""
