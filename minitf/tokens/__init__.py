"""Token reduction: merging, dropping, pooling, one file each."""
