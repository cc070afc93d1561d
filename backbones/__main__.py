"""`python -m backbones COMMAND`; see `backbones.commands`."""

from backbones.commands import main

main()
