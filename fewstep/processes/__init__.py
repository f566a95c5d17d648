"""Forward processes: how a clean sample becomes noise."""
