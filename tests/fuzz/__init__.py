"""Mutated messages over all RPCs."""
