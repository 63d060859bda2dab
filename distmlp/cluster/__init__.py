"""Many processes as one. How their devices exchange gradients is not here but in `parallel`."""
