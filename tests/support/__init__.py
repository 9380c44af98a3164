"""What several tests need: real servers and ways to run the installed command."""
