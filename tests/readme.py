"""README.md is the home page of the course, nbs/index.ipynb, with links that hold from the top of the repository; nbs/llms.txt lists
the same pages for programs that read the site; miniai/course.json holds lessons and exercises for `miniai progress`."""
import json,re
from pathlib import Path

root = Path(__file__).parent.parent
site,raw = 'https://miniai.github.io/miniai/','https://raw.githubusercontent.com/miniai/miniai/main/nbs/'

exercise = re.compile(r'\*\*(?:\d+\. )?([A-Z][a-z ]+)(?:: ([^*]+))?\*\* \((★{1,3}), (\d+) minutes?\)')

def course():
    "The lessons with their exercises, for `miniai progress`: the words above a call of `check` are its exercise's."
    lessons = []
    for file in sorted((root/'nbs').glob('[0-9][0-9]_*.ipynb')):
        cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads(file.read_text(encoding='utf-8'))['cells']]
        title = next(s for k,s in cells if k=='markdown' and s.startswith('# ')).splitlines()[0][2:]
        found,asked,checks = [],None,''
        for kind,source in cells:
            if kind=='markdown' and (m := [*exercise.finditer(source)]): asked = m[-1]
            if m := re.search(r'^from miniai\.checks\.(\w+) import check\b', source, re.M): checks = m[1]
            for name in re.findall(r'^check\((\w+)\)', source, re.M) if kind=='code' else ():
                found.append(dict(name=name, title=(asked[2] or asked[1]) if asked else '', stars=len(asked[3]) if asked else 0, minutes=int(asked[4]) if asked else 0))
        lessons.append(dict(file=file.stem, title=title, checks=checks, exercises=found))
    return json.dumps(lessons, indent=1, ensure_ascii=False)+'\n'

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
    (root/'miniai/course.json').write_text(course(), encoding='utf-8')
    print('miniai: wrote README.md, nbs/llms.txt and miniai/course.json')
