"""Text in regions: read, checked, sketched, and imposed on planner and decoder."""
