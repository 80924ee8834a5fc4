"""dollar_jax: few-step video generation by distillation and latent reward optimisation (arXiv 2412.15689)."""
