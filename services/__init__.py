"""Sfumato: text-guided image generation and editing as gRPC services."""
