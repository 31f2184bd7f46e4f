"""Sets at remote places: one contract (`bucket`), one file for each kind of place, one store that reads them all."""
