"""Numbers about models and their videos: python -m dollar_jax.evaluate COMMAND [flags]; COMMAND --help says more.

report    a page of what one run found, or several: mean and spread over seeds, variants side by side
vendi     how many different videos there are of a prompt, by pixels, Inception v3 or features of one's own
human     a web page where people compare the videos of two models; their winning rates
vbench    samples VBench's prompts under its file names, or turns its results into quality, semantic and total scores
timing    seconds of text encoding, diffusion and decoding, teacher beside student (Tab. 4 of the paper)
memory    what tuning by a reward takes of memory: latent reward models beside CLIP-H (Tab. 1 and Tab. 10 of the paper)
"""

import importlib
import sys

from absl import flags

from dollar_jax.cli import run
from dollar_jax.errors import UserError

# Each module defines its flags and main(); no other is imported, so that two commands may have a flag of one name.
COMMANDS = {
    "report": "dollar_jax.evaluate.commands.report",
    "vendi": "dollar_jax.evaluate.commands.vendi",
    "human": "dollar_jax.evaluate.commands.human",
    "vbench": "dollar_jax.evaluate.commands.vbench",
    "timing": "dollar_jax.evaluate.commands.timing",
    "memory": "dollar_jax.evaluate.commands.memory",
}


def refuse(command: str) -> None:
    """Raises UserError: there is no such command."""
    raise UserError(f"{command}: no such command; give one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        command = importlib.import_module(COMMANDS[sys.argv.pop(1)])
        __doc__ = command.__doc__  # what --help shows
        flags.adopt_module_key_flags(command)
        run(command.main)
    else:
        del sys.argv[2:]  # whose flags are those of a command that is not there?
        run(refuse, ("COMMAND",))
