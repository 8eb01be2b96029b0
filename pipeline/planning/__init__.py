"""From a prompt to a plan."""
