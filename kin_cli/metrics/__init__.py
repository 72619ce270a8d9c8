"""What can be measured on a translated slide: one metric, one file."""
