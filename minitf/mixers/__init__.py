"""Token mixers that do not attend, one file each."""
