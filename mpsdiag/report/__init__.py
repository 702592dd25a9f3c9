"""Journals and diagnoses told to people: terminal, Markdown, HTML, CSV, JSON and pictures."""
