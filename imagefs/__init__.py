"""imagefs: disk images that form chains; captured, mounted, browsed, verified, restored."""
