"""Images as file systems of fsspec: ``imagefs://p2/etc/fstab::file:///backups/set``."""
