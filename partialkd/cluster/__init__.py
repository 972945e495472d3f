"""Where runs run: is this machine fit for one (doctor), and how one is handed to Slurm (submit)."""
