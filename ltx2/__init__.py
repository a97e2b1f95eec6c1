"""Serve LTX-2: text, images and sound in, an MP4 with synchronised sound out."""

__version__ = "0.1.0"
