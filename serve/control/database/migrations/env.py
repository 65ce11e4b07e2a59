"""What Alembic runs for each of its commands. The server hands a connection over, inside its own transaction; a
developer's `alembic` gets one to the database that `-x url=...` names."""

from alembic import context

from serve.control.database.connection import connect
from serve.control.database.tables import Table

given = context.config.attributes.get("connection")
if given is not None:
    context.configure(connection=given, target_metadata=Table.metadata)
    context.run_migrations()
else:
    url = context.get_x_argument(as_dictionary=True).get("url", "sqlite://")
    with connect(url).begin() as connection:
        context.configure(connection=connection, target_metadata=Table.metadata)
        context.run_migrations()
