"""What the watch over operations sees and remembers."""
