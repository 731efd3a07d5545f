"""`python -m bntool` is the same as `bntool`."""

from bntool.cli.app import main

if __name__ == "__main__":
    main()
