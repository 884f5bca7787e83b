"""HTTP in, HTTP out. Imports neither torch nor av: a worker stays small and answers while models run."""
