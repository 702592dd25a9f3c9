"""Tables, text and pictures of the results."""
