"""One module for each contestant. Each runs in its own process, in the environment of its own requirements."""
