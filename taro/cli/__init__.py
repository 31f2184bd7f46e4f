"""The command line: thin modules that read arguments, call a stage and print what came of it; app.py is the table.

A stage is imported only inside a command's function, so that `taro --help` imports none."""
