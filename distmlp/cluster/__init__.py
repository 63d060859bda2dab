"""Many processes as one: which of them this is, joining the others, agreeing with them, stopping and ending together.

How devices exchange gradients is not here but in `parallel`.
"""
