"""Posts labelled by hand: draws, votes, the page on which people vote, and the GOLD that comes of it."""
