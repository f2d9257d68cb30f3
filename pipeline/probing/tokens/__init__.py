"""From stores to the rows that probes read: in memory, on the device, or streamed."""
