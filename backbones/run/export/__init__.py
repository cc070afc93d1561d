"""Export of a checkpoint for other programs, checked by reading it there.

export.py          from a checkpoint to a file that was read again
formats.py         how each format is written, and the lines that read it
fresh_process.py   reads a file in a process that imports none of our code
"""
