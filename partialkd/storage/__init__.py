"""Files that are whole or not there, and which process is at work on them."""
