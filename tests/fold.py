"""Fold cells in JupyterLab as they are on the site: `python tests/fold.py [nbs/07_convolutions.ipynb ...]`.

A cell with `#| code-fold: true`, or one that the site hides, gets the metadata by which JupyterLab hides its source; a heading that begins with
"Making it robust" is collapsed with all that follows it. Every other cell is open."""
import json,os,re,sys
from pathlib import Path
from common import notebooks,source

def folded(cell): return cell['cell_type']=='code' and bool(re.search(r'^#\| code-fold: true$', source(cell), re.M))

def metadata(cell):
    "The metadata that this cell must have."
    kept = {k: v for k,v in cell['metadata'].items() if k not in ('jupyter','jp-MarkdownHeadingCollapsed')}
    if folded(cell) or cell['cell_type']=='code' and source(cell).startswith('#| hide'): kept['jupyter'] = dict(source_hidden=True)
    if cell['cell_type']=='markdown' and source(cell).startswith('## Making it robust'): kept['jp-MarkdownHeadingCollapsed'] = True
    return kept

def fold(path):
    "Bring a notebook's metadata in step with its cells; true where something changed."
    path = Path(path)
    nb = json.loads(path.read_text(encoding='utf-8'))
    want = [metadata(c) for c in nb['cells']]
    if want==[c['metadata'] for c in nb['cells']]: return False
    for c,m in zip(nb['cells'], want): c['metadata'] = m
    temp = path.with_suffix('.tmp')
    temp.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')
    os.replace(temp, path)
    return True

if __name__=='__main__':
    for f in sys.argv[1:] or notebooks:
        if fold(f): print(f'miniai: folded {f}')
