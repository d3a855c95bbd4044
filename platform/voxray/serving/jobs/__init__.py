"""Jobs: what was asked of the service, kept in a database and files until it is answered."""
