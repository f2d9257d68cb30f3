"""Data that lie elsewhere: copied to this machine once, then read as others."""
