"""What this machine gives: the rate of every stage beside the device's limits and beside a plain loop."""
