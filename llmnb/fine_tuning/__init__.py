"""Your labels, your model: every sensible way to a text classifier, and an honest comparison."""
