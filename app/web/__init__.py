"""HTTP in, HTTP out. Imports neither torch nor av, so that workers stay small and answer while models run.

`routes.py` describes the routes; a method with the route's name in a `*_views.py` module serves it.
"""
