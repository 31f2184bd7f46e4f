"""AdamW whose states may be short, and may be spread over ranks: slices of flattened parameters, each with an owner."""
