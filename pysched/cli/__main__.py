"""`python -m pysched.cli`, the same as `scheduler`; also run by its path, where the current folder must not count."""

import os
import sys

if os.path.abspath(sys.path[0]) == os.path.dirname(os.path.abspath(__file__)):
    del sys.path[0]  # run by path: our commands are no top-level modules

from pysched.cli import main

main()
