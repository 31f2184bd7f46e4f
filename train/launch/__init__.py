"""Many ranks: processes are started and watched, join one group, and end together."""
