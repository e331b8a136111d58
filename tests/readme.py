"README.md is the home page of the course, nbs/index.ipynb, with links that hold from the top of the repository."
import json,re
from pathlib import Path

root = Path(__file__).parent.parent

def render():
    "The home page's text cells as the README's Markdown."
    cells = json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8'))['cells']
    text = '\n\n'.join(''.join(c['source']).strip() for c in cells if c['cell_type']=='markdown')
    return '<!-- Made from nbs/index.ipynb by `make readme` -->\n\n' + re.sub(r'\]\((?!https?:|#)', '](nbs/', text) + '\n'

if __name__=='__main__':
    (root/'README.md').write_text(render(), encoding='utf-8')
    print('miniai: wrote README.md')
