"""A config of this repository with one of its students alone: --config=one_student.py:shapes.vsd_cd."""

from importlib import import_module

from ml_collections import ConfigDict


def get_config(chosen: str) -> ConfigDict:
    """MODULE.STUDENT -> that module's config; the student starts from the teacher."""
    module, _, name = chosen.partition(".")
    config = import_module(f"configs.{module}").get_config()
    config.students = ConfigDict({name: config.students[name].to_dict() | {"start_from": ""}})
    return config
