"""From a checkpoint folder to modules on devices."""
