"""The dataset in the forms that other programs read, from the store alone."""
