"""Banks, which train many probes of one shape as one program, and the plan of their memory."""
