"""Each guess that a lesson asks for, with the output that decides it and the answer that the text gives, for a person to read:
`python tests/guesses.py [nbs/15_ddpm.ipynb ...]`. A guess without an answer, or with one that the output contradicts, is a fault."""
import json,re,sys
from pathlib import Path
from common import lessons

asks = re.compile(r'\b(guess|predict|before you (look|run|read on)|what do you expect|what will|what happens if|which (one|of)\b.*\?)', re.I)

def output(cell):
    "What a cell printed, shortened; figures by their description."
    parts = []
    for o in cell['outputs']:
        data = o.get('data', {})
        if 'image/png' in data:
            alt = re.search(r'^#\| fig-alt: (.*)', ''.join(cell['source']), re.M)
            parts.append(f"[figure: {alt[1] if alt else 'no description'}]")
        else: parts.append(''.join(o.get('text', data.get('text/markdown', data.get('text/plain', '')))))
    text = '\n'.join(parts).strip()
    return text if len(text)<1500 else text[:1500]+' ...'

def show(file):
    "Print the guesses of one lesson; returns how many there are."
    cells,n = json.loads(Path(file).read_text(encoding='utf-8'))['cells'],0
    end = next((i for i,c in enumerate(cells) if c['cell_type']=='markdown' and re.search(r'^## Exercises', ''.join(c['source']), re.M)), len(cells))
    for i,c in enumerate(cells[:end]):
        text = ''.join(c['source'])
        if c['cell_type']!='markdown' or not asks.search(text): continue
        asked = [p for p in text.split('\n\n') if asks.search(p)]
        j = i+1
        outs = []
        while j<len(cells) and cells[j]['cell_type']=='code':
            outs.append(output(cells[j]))
            j += 1
        answer = ''.join(cells[j]['source']) if j<len(cells) else ''
        n += 1
        print(f"\n--- {Path(file).stem}[{i}]\nASKED   {' / '.join(asked)}\nOUTPUT  {chr(10).join(filter(None, outs))}\nANSWER  {answer[:900]}")
    return n

if __name__=='__main__':
    files = sys.argv[1:] or lessons
    print(f'\n{sum(map(show, files))} guesses in {len(files)} lessons')
