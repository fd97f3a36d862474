"""The gateway service: the door for clients, the sampling loops and the guidance."""
