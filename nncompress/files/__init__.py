"""Files that this program writes: whole or not at all, never over what it was given, only its own deleted.

| module         | what it is for                                                             |
|----------------|----------------------------------------------------------------------------|
| `atomic`       | a file appears whole or not at all                                         |
| `leftovers`    | what a killed writer left: removed, or finished before it is read          |
| `targets`      | may this name be written?                                                  |
| `ledger`       | which files of a folder are ours, and may be replaced or deleted           |
| `lock`         | is another process at work here?                                           |
| `interrupts`   | Ctrl-C and SIGTERM held back while C++ calls into Python                   |
| `folders`      | folders that are made, and the one for what can be made anew               |
| `bounded_text` | what a small text file from anyone's hand says, in bounded memory and time |
"""
