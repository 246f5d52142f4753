"""``python -m imagefs``."""

from imagefs.cli.main import run

run()
