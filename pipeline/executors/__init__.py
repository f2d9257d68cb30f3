"""A Ray cluster as a place where work is done: where actors go, how one is reached, what an actor does, and the engine."""
