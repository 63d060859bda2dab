"""What survives a process: the folder of a run, its checkpoints and metrics; and what interrupts it."""
