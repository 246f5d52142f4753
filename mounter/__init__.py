"""FUSE only: binding, tree, operations, session, errnos. Knows Readers and FileSystems, not images."""
