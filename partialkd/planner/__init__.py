"""How much memory, traffic and time a run will take, told before it is started."""
