"""The speed of this machine: every stage of a translation against the device's limits and against a plain loop."""
