"""The server behind the page of `make play`: one port, one engine thread, one task per player."""
