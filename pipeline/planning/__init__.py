"""What work would take, before any of it is done: bytes, files, minutes, memory, room on the disk."""
