"""The shape of each lesson, as a table in Markdown: `python tests/shape.py`.

The main path is what stands above "Making it robust" or, where a lesson has no such part, above "Exercises". Of it are counted the code cells
that are open (neither folded nor hidden) and their lines (not blank, no directive), and the words of its text (a formula is one word)."""
import re
from common import all_cells,lessons,source
from fold import folded

kinds = 'Warm-up','Predict','Change','Extend','Find the bug','Rebuild it','Beat it','Project'
exercise = re.compile(rf'^\*\*(?:\d+\. )?({"|".join(kinds)})(?:: [^*]+)?\*\* \((★{{1,3}}), (\d+) minutes?\)', re.M)

def main_path(cells):
    "The cells of the main path."
    for i,c in enumerate(cells):
        if c['cell_type']=='markdown' and re.match('## (Making it robust|Exercises)', source(c)): return cells[:i]
    return cells

def lines(cell): return [l for l in source(cell).splitlines() if l.strip() and not l.startswith('#|')]

def is_open(cell): return cell['cell_type']=='code' and not folded(cell) and not source(cell).startswith('#| hide')

def words(text):
    "Words of a text without its code; a formula is one word, a link is the words that are shown."
    text = re.sub(r'```.*?```', ' ', text, flags=re.S)
    text = re.sub(r'\$\$.*?\$\$|\$[^$\n]+\$', ' formula ', text, flags=re.S)
    text = re.sub(r'\]\([^)]*\)', ' ', text)
    return sum(bool(re.search(r'\w', o)) for o in text.split())

def shape(file):
    "The figures of one lesson, a dict."
    cells = all_cells(file)
    path = main_path(cells)
    opened = [c for c in path if is_open(c)]
    n = sum(len(lines(c)) for c in opened)
    w = sum(words(source(c)) for c in path if c['cell_type']=='markdown')
    text = '\n'.join(source(c) for c in cells if c['cell_type']=='markdown')
    figures = sum(any(k.startswith('image/') for k in o.get('data', {})) for c in cells if c['cell_type']=='code' for o in c['outputs'])
    found = [m[1] for m in exercise.finditer(text)]
    return dict(lesson=file.stem, cells=len(opened), lines=n, words=w, per_line=round(w/max(1, n), 1), figures=figures,
                folded=sum(folded(c) for c in cells), exercises=len(found), **{k: found.count(k) for k in kinds})

def table(rows):
    "Markdown."
    head = list(rows[0])
    out = ['| '+' | '.join(head)+' |', '|'+' --- |'*len(head)]
    return '\n'.join(out+['| '+' | '.join(str(v) for v in r.values())+' |' for r in rows])

if __name__=='__main__':
    rows = [shape(f) for f in lessons]
    print(table(rows))
    for name,part in (('00 to 14', rows[:15]), ('15 to 28', rows[15:29])):
        print(f"{name}: {sum(r['words'] for r in part)/sum(r['lines'] for r in part):.1f} words per open line; "+', '.join(f'{k} {sum(r[k] for r in part)}' for k in kinds))
