"""Who runs the slices of a job: one file each."""
