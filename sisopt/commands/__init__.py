"""What follows ``sisopt`` on the command line, a file per command; click is there, other extras where they are used."""
