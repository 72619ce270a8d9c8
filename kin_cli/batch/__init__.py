"""Many slides in one command, and one slide in many scheduler jobs."""
