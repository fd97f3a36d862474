"""The editor service: optimisation-based editing as durable jobs."""
