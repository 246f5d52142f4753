"""The version, as the wheel and every image carry it."""

VERSION = "0.1.0"
