"""`python -m midsight` is the command `midsight`."""

from midsight.cli import main

if __name__ == "__main__":
    main()
