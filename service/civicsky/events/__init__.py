"""Context of current events: a folder of articles, what of it a post is about, and how a model is told of it."""
