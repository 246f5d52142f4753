"""One file per family of file systems. Each probe is a function of a Window that gives facts or None."""
