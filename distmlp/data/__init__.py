"""Files and arrays -> batches: what is read, what is checked, and in which order examples come.

Nothing here knows of devices; how batches reach them is `parallel`.
"""
