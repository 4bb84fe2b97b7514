"""What the tests of the CuPy backend share, with a card or without."""
