"""What a run will do: the program it compiles to, on hardware that need not be there, and how long a step of it takes.

Nothing here trains, and nothing below (loop, run, parallel) knows of it.
"""
