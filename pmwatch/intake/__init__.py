"""From disk to a settled file: watch, scan, settle."""
