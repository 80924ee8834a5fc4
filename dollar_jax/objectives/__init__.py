"""What the student is trained for: one file an objective.

Each has its equation as a pure function of arrays that returns [b], and under it a function of a `Context`, named like
the file, that runs the networks to feed it. A config lists the second by name with a weight; `module:function` names
one from outside the package.

An objective's attribute `needs` says what an iteration has to do for it beside running it:

fake_score    train the fake score on the student's samples (also where the attribute is absent)
reward_model  train the latent reward model
trajectory    draw a chain of the student's and score where it ends
pixel_reward  prepare a differentiable reward, and the decoder
"""
