"""What a run will need: facts of data and machine, rules that make a configuration, times, checks before it starts."""
