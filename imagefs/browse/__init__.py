"""File systems over any Reader: opening one, walking, finding, extracting. Nothing here writes to a
volume, and nothing here knows where the bytes come from."""

from imagefs.browse.apart import open_apart
from imagefs.browse.archive import archive
from imagefs.browse.deletedtree import DeletedTree
from imagefs.browse.examine import Content
from imagefs.browse.extract import extract, plan_targets
from imagefs.browse.find import Range, find
from imagefs.browse.hashset import HashSet
from imagefs.browse.manifest import Manifest
from imagefs.browse.opening import open_filesystem
from imagefs.browse.taking import ExtractOptions, ExtractReport
from imagefs.browse.tarzip import archive_writer
from imagefs.browse.walk import walk

__all__ = [
    "Content",
    "DeletedTree",
    "ExtractOptions",
    "ExtractReport",
    "HashSet",
    "Manifest",
    "Range",
    "archive",
    "archive_writer",
    "extract",
    "find",
    "open_apart",
    "open_filesystem",
    "plan_targets",
    "walk",
]
