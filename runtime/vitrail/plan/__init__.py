"""How much memory a model takes, before anything of it is built or loaded."""
