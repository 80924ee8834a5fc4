"""What the student is trained for: one file an objective.

Each has its equation as a pure function of arrays that returns [b], and under it a function of a `Context`, named like
the file, that runs the networks to feed it. A config lists the second by name with a weight; `module:function` names
one from outside the package.
"""
