"""Shard sets out of shard sets, and what can be said of them: filter, split, merge, diff, stats."""
