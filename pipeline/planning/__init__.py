"""What work would take, before any of it is done: bytes, files, disk space and memory, and minutes from a short calibration."""
