"""How a policy's reasonings depend on the order of a video: measured, tested, shown."""
