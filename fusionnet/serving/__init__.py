"""A trained run behind HTTP: predictions and rewards for programs that are not in Python.

A request is read within limits (`body`), its rows become a frame (`records`), and with its options
a question (`questions`). One thread owns the model; questions that arrive while it works are
answered together (`batching`, `answers`); a search for designs has a thread of its own (`designs`).
What the run reads and predicts is described as JSON (`described`), as OpenAPI (`openapi`) and as a
page that loads nothing from elsewhere (`page`). `service` holds what the endpoints of `app` share,
and `server` runs them as a process.
"""
