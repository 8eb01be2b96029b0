"""One check of a device from end to end, for a first run on hardware that nobody here has seen."""
