"""One image, chains of images, and the virtual disk a chain resolves to. Knows no file systems."""
