"""The command line. Each command imports what it needs when it runs: `isthmus --help` loads no torch."""
