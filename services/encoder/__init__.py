"""The encoder service: CLIP's text conditioning and joint space."""
