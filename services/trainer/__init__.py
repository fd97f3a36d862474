"""The trainer: makes the embedded model family from emoji artwork, as a batch job."""
