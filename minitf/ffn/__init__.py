"""Channel mixers, one file each."""
