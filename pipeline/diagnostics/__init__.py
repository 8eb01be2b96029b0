"""The doctor, and the audit of every operator."""
