"""Bytes at offsets: devices, targets, views and caches. Knows nothing of images or file systems."""
