"""What a config's `stages` name, in order. A stage is `(config, workdir, mesh) -> None`; called again it goes on or, if
it is complete, does nothing. `module:function` names one from outside the package.
"""
