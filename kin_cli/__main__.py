"""``python -m kin_cli`` is ``kin``."""

from kin_cli.commands.main import main

if __name__ == "__main__":
    main()
