"""The command line: click only, one file per command group; wiring joins the rooms, console speaks."""
