"""The commands of `python -m dollar_jax.evaluate`, a module each: flags and main(). Nothing else imports them."""
