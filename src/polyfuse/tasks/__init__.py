"""Vision and language tasks: rows of pictures and texts, models with heads, objectives. Import from the modules."""
