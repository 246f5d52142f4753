"""File systems over any Reader: opening one, walking, finding, extracting. Nothing here writes to a
volume, and nothing here knows where the bytes come from.

Imports nothing, so that a worker process, which needs little of this, starts quickly.
"""
