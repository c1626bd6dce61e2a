"""The configuration of phase 2: tasks, model, loss, optimisation, run and reward.

`embedcache.config` holds phase 1, `embedcache.schema` the base that refuses unknown keys;
`fusionnet.experiment` composes both.
"""
