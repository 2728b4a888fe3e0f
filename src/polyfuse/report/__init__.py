"""Records to a self-contained HTML page, its numbers as JSON and CSV, and a console table; never sees a model."""
