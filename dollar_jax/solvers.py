"""The solvers of `sample --sampler`, apart from the code that runs them: the command reads this before JAX starts."""

# Name -> what it changes in a card: its sampler, and how a flow spaces its times (None: as before).
SOLVERS = {
    "ddim": ("ddim", None),
    "ancestral": ("ancestral", None),
    "renoise": ("renoise", None),
    "euler": ("ddim", "euler"),
    "unipc": ("unipc", "unipc"),
    "unipc1": ("unipc1", "unipc"),
}
