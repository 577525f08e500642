"""The ``nucleus`` command, the pages it serves, and the set-up of a team's Prefect server."""
