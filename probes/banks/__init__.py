"""Banks: many probes of one shape that train as one program."""
