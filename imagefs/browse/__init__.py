"""File systems over any Reader: opening one, walking, finding, extracting. Nothing here writes to a
volume, and nothing here knows where the bytes come from."""

from imagefs.browse.deletedtree import DeletedTree
from imagefs.browse.extract import ExtractOptions, ExtractReport, extract, plan_targets
from imagefs.browse.find import Limits, find
from imagefs.browse.opening import open_filesystem
from imagefs.browse.walk import walk

__all__ = [
    "DeletedTree",
    "ExtractOptions",
    "ExtractReport",
    "Limits",
    "extract",
    "find",
    "open_filesystem",
    "plan_targets",
    "walk",
]
