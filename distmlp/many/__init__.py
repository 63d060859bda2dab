"""Many trainings at once: seeds, settings and folds, and which of them is best.

A member is one training of a sweep. How a member's step is computed is not here but in `parallel`.
"""
