"""Stand-alone scripts that show a finding."""
