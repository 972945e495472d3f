"""What the scripts of launch/ run: one module per command, each with main(argv)."""
