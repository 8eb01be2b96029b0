"""How fast each stage is, and how near to the device's limits."""
