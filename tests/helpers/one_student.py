"""A config of this repository with one of its students alone: --config=one_student.py:shapes.vsd_cd."""

from importlib import import_module

from ml_collections import ConfigDict


def get_config(chosen: str) -> ConfigDict:
    """MODULE.STUDENT -> that module's config; the student starts from the teacher.

    MODULE.STUDENT+RANK has a second student, `adapter`, which is a LoRA of this rank.
    """
    module, _, name = chosen.partition(".")
    name, _, rank = name.partition("+")
    config = import_module(f"configs.{module}").get_config()
    student = config.students[name].to_dict() | {"start_from": ""}
    adapter = {"adapter": student | {"lora": {"rank": int(rank)}}} if rank else {}
    config.students = ConfigDict({name: student, **adapter})
    return config
