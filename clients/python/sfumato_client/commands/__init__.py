"""The commands of `sfumato`, one module each."""
