"""Tables with holes become batches; missing patterns, corruptions and public data sets live here too."""
