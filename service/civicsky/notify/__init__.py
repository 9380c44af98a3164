"""What is told to a human: what, when, in which words, and how it gets there."""
