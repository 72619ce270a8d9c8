"""Threads with bounded queues; knows nothing of slides or networks."""
