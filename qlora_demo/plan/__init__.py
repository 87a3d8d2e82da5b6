"""What is decided before anything is loaded: the memory a run takes, its automatic choices, which models fit."""
