"""What pyproject.toml cannot say: the folder configs is a part of the package in a wheel, and no package beside it."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dollar_jax*"]), "dollar_jax.configs"],
    package_dir={"dollar_jax.configs": "configs"},
)
