"""Stage 1, videos and annotations in, a shard set out: plan, decode, segment, caption, encode, paths, write.

`preprocess` (run.py) is the whole stage as one call; every other module is one step of it. Names are imported from
their modules, so that importing this package costs nothing."""
