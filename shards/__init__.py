"""The artefact between the two stages: a shard set, its writer, reader, order, verification and view.

`docs/shard-format.md` is the format; `shards/format.py` its names and bounds. Nothing here runs a model or decodes a
video, and nothing here unpickles."""
