"""The commands of `python -m dollar_jax.evaluate`: one module each, with flags and main(). Nothing imports them."""
