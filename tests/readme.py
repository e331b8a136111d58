"""README.md is the home page of the course, nbs/index.ipynb, with links that hold from the top of the repository; nbs/llms.txt lists
the same pages for programs that read the site."""
import json,re
from pathlib import Path

root = Path(__file__).parent.parent
site,raw = 'https://miniai.github.io/miniai/','https://raw.githubusercontent.com/miniai/miniai/main/nbs/'

def text():
    "The home page's text cells."
    cells = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(c['source']).strip() for c in cells if c['cell_type']=='markdown')

def render():
    "README.md."
    return '<!-- Made from nbs/index.ipynb by `make readme` -->\n\n' + re.sub(r'\]\((?!https?:|#)', '](nbs/', text()) + '\n'

def llms():
    "llms.txt: title, summary, and each lesson with its page, its notebook and what it builds."
    title,summary = re.match(r'# (.+)\n\n> (.+)', text()).groups()
    rows = re.findall(r'^\| \[(.*?)\]\((\S+\.ipynb)\) \| (.*) \|$', text(), re.M)
    def page(file): return site+re.sub(r'^\d+_', '', file).replace('.ipynb', '.html')
    lessons = [f'- [{name}]({page(file)}): {what} (notebook: {raw}{file})' for name,file,what in rows]
    more = [f'- [Every exported name]({site}api.html)', f'- [Notation]({site}notation.html)']
    return '\n'.join([f'# {title}', '', f'> {summary}', '', '## Lessons', '', *lessons, '', '## Reference', '', *more, ''])

if __name__=='__main__':
    (root/'README.md').write_text(render(), encoding='utf-8')
    (root/'nbs/llms.txt').write_text(llms(), encoding='utf-8')
    print('miniai: wrote README.md and nbs/llms.txt')
