"""`make bench`: throughput beside the floor of this machine. Prints figures, fails nothing."""
