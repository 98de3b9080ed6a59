"""`python -m fedlearn.cli`: the same as the console script."""

from fedlearn.cli import main

main()
