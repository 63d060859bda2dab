"""What a finished or running run is good for: loading, predictions, evaluation, exports, the report, comparing two.

Stands above `run` and `parallel`; nothing below knows of it, and nothing here trains or writes to a run's folder.
"""
