"""A whole run: its phases in order, its folder, and what to do when memory runs out."""
