"""A task's examples and wording made better on judged posts, of which a part is kept back for the last word."""
