"""Partition tables over any Reader: what volumes a disk has, and what is on each by its signature."""

from imagefs.volume.facts import FileSystemFacts
from imagefs.volume.layout import VolumeTable
from imagefs.volume.probe import probe, rivals
from imagefs.volume.roles import describe
from imagefs.volume.table import read_table

__all__ = ["FileSystemFacts", "VolumeTable", "describe", "probe", "read_table", "rivals"]
