"""`python -m pysched.cli`, the same as `scheduler`."""

from pysched.cli import main

main()
