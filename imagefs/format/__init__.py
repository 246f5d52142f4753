"""The container's bytes <-> values, as FORMAT.md lays them out. No I/O, no clock.

Whatever is decoded here may be hostile: sizes are bounded before anything is allocated, reserved
fields must be zero, and what does not hold is a FormatError (shape) or IntegrityError (checksum).
"""
