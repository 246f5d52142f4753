"""A machine that boots from a disk served over NBD, and what came of it. Knows sockets and programs, not images."""
