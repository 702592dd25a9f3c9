"""Stand-alone scripts that reproduce a finding."""
