"""`isthmus bench NAME`: one harness, results as JSON with where they come from."""
