"""``python -m xlnet_fast`` is the command ``xlnet-fast``."""

from xlnet_fast.cli import main

if __name__ == "__main__":
    main()
