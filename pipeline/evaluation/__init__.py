"""Does the text of an image read as asked."""
