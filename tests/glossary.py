"""The bold terms of the lessons, for nbs/glossary.qmd: `python tests/glossary.py` prints those that the glossary lacks.

A term is what a lesson sets in bold in its running text, the first time. Labels at the head of a lesson, titles of exercises and the first words of a
paragraph or list item that end with a full stop or a colon within the bold are none."""
import re
from common import cells,lessons,nbs,source

labels = {'Where we are','You will','You need','Takes'}

def plain(term): return re.sub(r'[`*]', '', re.sub(r'\s+', ' ', term)).strip().lower()

def terms(file):
    "The bold terms of a lesson, in order."
    found = []
    for c in cells(file, 'markdown'):
        text = re.sub(r'```.*?```', ' ', source(c), flags=re.S)
        if re.match('## (How this differs|What we built|Exercises|Sources)', text): break
        text = re.sub(r'`[^`\n]+`', lambda m: '`code`' if '**' in m[0] else m[0], text)
        for m in re.finditer(r'\*\*([^*\n]+?)\*\*', text):
            t = m[1]
            after,line = text[m.end():m.end()+3],text[:m.start()].rsplit('\n', 1)[-1]
            if t in labels or re.search(r'[.:?!]$', t) or re.match(r'\d+\.|Warm-up', t) or after.startswith((' (★','.',':')) and not line.strip(' -*'): continue
            if re.fullmatch(r'\s*[-*] ', line): continue
            if plain(t) not in map(plain, found): found.append(t)
    return found

def entries():
    "The glossary's entries: term -> the file to which it leads."
    text = (nbs/'glossary.qmd').read_text(encoding='utf-8')
    return {plain(m[1]): m[2] for m in re.finditer(r'^\*\*(.+?)\*\*: .*\[\d\d\]\((\S+?\.ipynb)\)$', text, re.M)}

def missing():
    "Pairs (term, lesson) of the lessons in `common.lessons` that the glossary lacks; a term belongs to the first lesson that has it."
    known,first = entries(),{}
    for f in lessons:
        for t in terms(f): first.setdefault(plain(t), (t, f.name))
    return [v for k,v in first.items() if k not in known]

if __name__=='__main__':
    for t,f in missing(): print(f'{f}: {t}')
