"""One file an output format: terminal, Markdown, HTML, CSV, JSON."""
