"""The four networks, module by module under the names of the checkpoint's keys."""
