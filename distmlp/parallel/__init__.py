"""Batches -> devices -> new parameters: placement, the step and its wrappings, the order of addition, evaluation.

Nothing here decides when something happens (that is `loop`) or writes a file (that is `run`).
"""
