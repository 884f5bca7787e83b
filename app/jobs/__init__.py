"""A request's life across restarts: the job's record, its states, and the engine that runs it."""
