"""Load: locust's users with our client, shapes of load, and the report. `python -m tests.load --help`."""
