"""`python -m ucore` is the command ucore."""

from ucore.cli import main

if __name__ == "__main__":
    main()
