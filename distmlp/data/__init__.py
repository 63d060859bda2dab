"""Files and arrays -> batches: what is read and checked, and in which order. How they reach devices is `parallel`."""
