"""`python -m integration.lecture`: every table and figure of the lecture, and the page; `whole.py` says how."""

from integration.lecture.whole import main

main()
