"""What is done once: a settings file, and what the machine is to start."""
