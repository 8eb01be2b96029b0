"""What a device can do: names, dtypes, memory and kernels, before any model."""
