"""Who writes the dense captions: one file each."""
