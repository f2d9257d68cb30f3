"""The commands: parse, call, show. One file a command; they know click, and import what they call only when they run."""
