"""Turns published checkpoints into parts of a family; a batch job: `python -m sfumato.importer --help`."""
