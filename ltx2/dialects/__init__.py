"""The HTTP dialects: one file each, all speaking to one studio."""
