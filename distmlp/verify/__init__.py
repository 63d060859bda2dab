"""Whether these devices keep what distmlp promises: each promise is tried out on them, in minutes.

A check is a function of Here that returns what it found, or raises NotHeld or NotHere; verify.py lists and runs them.
"""
