"""The report of runs: one page of HTML that needs no network, and PNGs.

make_report.py   from run folders to the files
runs.py          run folders -> runs
groups.py        runs -> groups of those that differ in nothing but their seed; how groups differ
curves.py        metrics over the steps, as coordinates
examine.py       what a trained model does with the images
page.py          all of that -> HTML: page.html.j2, group.html.j2, page.css
overview.py      the table and the curves as a PNG
text.py          numbers as text
"""
