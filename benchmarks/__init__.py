"""Side-by-side measurements against tools we did not write: ``make bench``."""
