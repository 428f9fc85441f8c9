"""The ports over trio and TCP, and the two daemons.  The only place, with the command line, that knows trio."""
