"""Token mixers that attend, one file each."""
