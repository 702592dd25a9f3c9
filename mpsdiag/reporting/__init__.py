"""Tables, text and pictures of what was found."""
