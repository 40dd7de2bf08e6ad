"""The report of a run: one self-contained HTML page (`html.write_report`), its photographs and curves."""
