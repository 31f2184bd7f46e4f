"""Videos: looked at, decoded by timestamp, in processes that can be killed."""
