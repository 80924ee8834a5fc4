"""The stages of a run, `(config, workdir, mesh) -> None`. The field `stages` of a config names them in order.

A second call of a stage resumes it, or does nothing if it is complete. `module:function` names a stage from outside the
package.
"""
