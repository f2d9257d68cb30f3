"""`python -m layerbank`, `torchrun -m layerbank`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="layerbank")
