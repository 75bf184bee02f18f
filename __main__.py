"""``python -m cmcr``."""

from .cli import main

main()
