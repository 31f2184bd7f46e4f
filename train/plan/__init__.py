"""What a run will take of a GPU, in steps and in hours, before anything is loaded: pure functions of shapes, settings
and lengths. `memory` has the formulas, `make` puts a plan together, `fits` looks for settings that fit, `show` writes
it down, `speed` keeps what steps took on this machine."""
