"""Run notebooks in place: `python tests/execute.py [--slow] nbs/13_resnet.ipynb ...`. Cells flagged `#| slow` are left as they are, with
the outputs they have, unless `--slow` is given; a failing cell leaves its notebook untouched."""
import os,sys,time
from pathlib import Path
import nbformat
from nbclient import NotebookClient


class Client(NotebookClient):
    "Executes a notebook; without `slow`, passes over the cells flagged so."
    slow = False
    async def async_execute_cell(self, cell, cell_index, **kwargs):
        if cell.source.startswith('#| slow') and not self.slow: return cell
        return await super().async_execute_cell(cell, cell_index, **kwargs)


def execute(
    path, # Notebook
    slow=False, # Run the cells flagged `#| slow` too?
): # Seconds that it took
    "Run the notebook at `path` in its own folder and write it back, by way of a temporary file."
    path,start = Path(path),time.time()
    nb = nbformat.read(path, as_version=4)
    client = Client(nb, timeout=7200 if slow else 1800, resources={'metadata': {'path': str(path.parent)}})
    client.slow = slow
    client.execute()
    temp = path.with_suffix('.tmp')
    nbformat.write(nb, temp)
    os.replace(temp, path)
    return time.time()-start


if __name__=='__main__':
    files = [o for o in sys.argv[1:] if o!='--slow']
    for f in files: print(f'miniai: {f} {execute(f, "--slow" in sys.argv):.0f} s', flush=True)
