"""Score networks on verification sets: whether two images show one person."""
