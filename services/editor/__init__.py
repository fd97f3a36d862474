"""The editor service: optimisation-based editing.

Its methods come with their own release. Until then nothing here is started or advertised; the contract
that all methods will share is in protos/sfumato/v1/editor.proto.
"""
