"""Pages a person wants to look at."""
