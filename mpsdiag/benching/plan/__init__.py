"""From a matrix file and options to the list of cells."""
