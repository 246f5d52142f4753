"""The terminal browser: what ``imagefs browse`` shows. Textual is imported in this room alone.

``session`` is what it asks of the command line, ``folder``, ``names``, ``content`` and ``picture`` are what is
shown, without a screen; the other modules are the screens. Whatever reads an image runs in a thread
of its own (``jobs``): the screen never waits for a disk.
"""
