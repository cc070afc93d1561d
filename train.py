"""Train an image backbone: `torchrun train.py --model vit-tiny --optim adam`."""

from backbones.commands.exit import run_command
from backbones.commands.train import main
from experiments import CLAIMS, EXPERIMENTS

if __name__ == "__main__":
    run_command(lambda args: main(args, EXPERIMENTS, CLAIMS))
