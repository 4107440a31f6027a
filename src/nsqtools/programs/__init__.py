"""What each program is made of: its options, and its run. `cli/` names them, and nothing else."""
