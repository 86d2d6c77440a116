"""The control plane: tasks in and out over HTTP (CONTRACT § HTTP).

`app.create_app` builds the application on a store, `server.serve` runs it; `client.py` is the
seed's client program.  Nothing is imported here, so that program starts without the server's parts.
"""
