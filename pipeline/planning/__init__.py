"""Plans before any work: bytes, files, disk space and memory of an extraction, and minutes from a short calibration."""
