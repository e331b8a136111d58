"""Run notebooks in place: `python tests/execute.py [--slow] nbs/13_resnet.ipynb ...`. Cells flagged `#| slow` are left as they are, with
the outputs they have, unless `--slow` is given; a failing cell leaves its notebook untouched."""
import base64,io,os,re,sys,time
from pathlib import Path
import nbformat
import numpy as np
from PIL import Image
from nbclient import NotebookClient


class Client(NotebookClient):
    "Executes a notebook; without `slow`, passes over the cells flagged so."
    slow = False
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.source.startswith('#| slow') and not self.slow: return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def table(html):
    "The table of a progress bar in Markdown."
    rows = [re.findall(r'<t[hd]>(.*?)</t[hd]>', r) for r in re.findall(r'<tr>(.*?)</tr>', html, re.S)]
    lines = ['| '+' | '.join(r)+' |' for r in rows]
    return '\n'.join([lines[0], '|'+' ---: |'*len(rows[0]), *lines[1:]])


def smaller(png):
    "The same pixels in fewer bytes, in base64: without an opaque alpha channel, as grey values where all are grey."
    raw = base64.b64decode(png)
    rgba = np.asarray(Image.open(io.BytesIO(raw)).convert('RGBA'))
    if (rgba[...,3]!=255).any(): return png
    rgb,out = rgba[...,:3],io.BytesIO()
    grey = (rgb==rgb[...,:1]).all()
    Image.fromarray(np.ascontiguousarray(rgb[...,0] if grey else rgb)).save(out, 'PNG', optimize=True)
    return base64.b64encode(out.getvalue()).decode() if len(out.getvalue())<len(raw) else png


def tidy(cell):
    "Drop what no reader sees and for which the site would load scripts: widgets, empty HTML, the style sheet of a progress bar."
    if cell.cell_type!='code': return
    kept = []
    for o in cell.outputs:
        data = o.get('data')
        if data is not None:
            for k in [k for k in data if 'widget' in k]: del data[k]
            if 'image/png' in data: data['image/png'] = smaller(data['image/png'])
            html = re.sub(r'<style.*?</style>', '', data.pop('text/html', ''), flags=re.S)
            if '<table' in html: data['text/markdown'] = table(html)
            elif html.strip(): data['text/html'] = html
            if not data or (set(data)=={'text/plain'} and data['text/plain']=='<IPython.core.display.HTML object>'): continue
        kept.append(o)
    cell.outputs = kept


def execute(
    path, # Notebook
    slow=False, # Run the cells flagged `#| slow` too?
): # Seconds that it took
    "Run the notebook at `path` in its own folder and write it back, by way of a temporary file."
    path,start = Path(path),time.time()
    nb = nbformat.read(path, as_version=4)
    client = Client(nb, timeout=7200 if slow else 1800, iopub_timeout=60, resources={'metadata': {'path': str(path.parent)}})
    client.slow = slow
    client.execute()
    for cell in nb.cells:
        tidy(cell)
        cell.metadata.pop('execution', None)        # as nbdev_clean leaves them, for those who forget it
        if cell.cell_type=='code': cell.execution_count = None
    nb.metadata.pop('widgets', None)
    temp = path.with_suffix('.tmp')
    nbformat.write(nb, temp)
    os.replace(temp, path)
    return time.time()-start


if __name__=='__main__':
    files = [o for o in sys.argv[1:] if o!='--slow']
    for f in files: print(f'miniai: {f} {execute(f, "--slow" in sys.argv):.0f} s', flush=True)
