"""What survives a process: the folder of a run, its checkpoints and metrics, when they are due, and what interrupts it.

The control flow that uses them is `loop`; what a finished run is good for is not here.
"""
