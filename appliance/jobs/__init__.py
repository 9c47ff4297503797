"""Long work: rows that the worker takes up, and what is due by the clock."""
