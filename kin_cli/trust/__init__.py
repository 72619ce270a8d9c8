"""Where a generator can be believed: learning what it knows, and witnesses besides the trust map."""
