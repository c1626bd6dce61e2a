"""The configuration of phase 1.

A component owns its config: this package holds what `embedcache` reads (columns, split, encoder,
cache). `fusionnet.config` holds phase 2, `fusionnet.experiment` composes both. Values are frozen
pydantic models; a YAML file states only what differs from the defaults. Every key says what it
means in its `description`.
"""
